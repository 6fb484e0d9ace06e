// A page of a headless Chromium, with WebGPU on a software adapter, and the files that it may load.
import { createReadStream, existsSync, mkdtempSync, rmSync, statSync } from 'node:fs';
import http from 'node:http';
import os from 'node:os';
import path from 'node:path';
import { fileURLToPath } from 'node:url';
import { chromium } from 'playwright-core';

const HERE = path.dirname(fileURLToPath(import.meta.url));
const TYPES = { '.mjs': 'text/javascript', '.js': 'text/javascript', '.wasm': 'application/wasm', '.html': 'text/html', '.json': 'application/json' };
const QUIET = ['--no-sandbox', '--no-first-run', '--disable-background-networking', '--disable-component-update', '--disable-sync'];

// Serve the folders `roots` (by the first part of the path) and `pages` (texts by path). Isolated, so that wasm has threads.
function serve(roots, pages) {
  const headers = { 'cross-origin-opener-policy': 'same-origin', 'cross-origin-embedder-policy': 'require-corp' };
  const server = http.createServer((request, response) => {
    const name = decodeURIComponent(new URL(request.url, 'http://page').pathname);
    if (name in pages) return response.writeHead(200, { ...headers, 'content-type': 'text/html' }).end(pages[name]);
    const root = Object.keys(roots).find((each) => name.startsWith(`${each}/`));
    const file = root && path.join(roots[root], name.slice(root.length));
    if (!file || !existsSync(file) || statSync(file).isDirectory()) return response.writeHead(404).end();
    const type = TYPES[path.extname(file)] ?? 'application/octet-stream';
    response.writeHead(200, { ...headers, 'content-type': type, 'content-length': statSync(file).size });
    return createReadStream(file).pipe(response);
  });
  return new Promise((done) => server.listen(0, '127.0.0.1', () => done(server)));
}

// Open a page that may import /modules (node_modules) and /here (this folder) and load what `roots` adds.
export async function openPage(webgpu, roots = {}, { html = '<!doctype html>', prepare = null } = {}) {
  const modules = path.join(HERE, 'node_modules');
  const server = await serve({ '/modules': modules, '/here': HERE, ...roots }, { '/': html });
  const profile = mkdtempSync(path.join(os.tmpdir(), 'onnx-tailor-chromium-'));
  const gpu = webgpu ? ['--enable-unsafe-webgpu', '--use-webgpu-adapter=swiftshader'] : ['--disable-gpu'];
  const browser = await chromium.launchPersistentContext(profile, {
    executablePath: process.env.CHROMIUM ?? '/usr/bin/chromium',
    headless: true,
    args: [...QUIET, '--enable-precise-memory-info', '--js-flags=--expose-gc', ...gpu],
  });
  const page = await browser.newPage();
  page.setDefaultTimeout(0);
  if (prepare) await page.addInitScript(prepare);
  await page.goto(`http://127.0.0.1:${server.address().port}/`);
  page.version = await page.evaluate(() => /Chrom\w*\/([\d.]+)/.exec(navigator.userAgent)[1]);
  page.end = async () => {
    await browser.close();
    server.close();
    rmSync(profile, { recursive: true, force: true });
  };
  return page;
}

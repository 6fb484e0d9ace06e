// Run small models in one build of ONNX Runtime for JavaScript and print, as JSON, what each gives.
// node run_cases.mjs SPEC.json, where SPEC is
//   build:    "node", or a file of onnxruntime-web/dist, which is run in a headless Chromium
//   provider: cpu, wasm or webgpu
//   cases:    [{name, folder, model, data, feeds: {NAME: {type, dims, base64}}, options}]; files are below `folder`
import { readFileSync } from 'node:fs';
import path from 'node:path';
import { createRequire } from 'node:module';
import { openPage } from './chromium.mjs';
import { runCases } from './cases.mjs';

const spec = JSON.parse(readFileSync(process.argv[2], 'utf8'));
const version = (name) => {
  const main = createRequire(import.meta.url).resolve(name);
  return JSON.parse(readFileSync(`${main.slice(0, main.lastIndexOf(`/node_modules/${name}/`))}/node_modules/${name}/package.json`)).version;
};

async function inNode() {
  const ort = await import('onnxruntime-node');
  const read = (file) => new Uint8Array(readFileSync(path.join(spec.folder, file)));
  return { versions: { 'onnxruntime-node': version('onnxruntime-node') }, results: await runCases(ort, spec, read) };
}

async function inChromium() {
  const page = await openPage(spec.provider === 'webgpu', { '/files': spec.folder });
  try {
    const found = await page.evaluate(async (spec) => {
      const ort = await import(`/modules/onnxruntime-web/dist/${spec.build}`);
      const { runCases } = await import('/here/cases.mjs');
      ort.env.wasm.wasmPaths = `${location.origin}/modules/onnxruntime-web/dist/`;
      ort.env.wasm.numThreads = 2;
      ort.env.logLevel = 'error';
      const read = async (file) => new Uint8Array(await (await fetch(`/files/${file}`)).arrayBuffer());
      const adapter = await navigator.gpu?.requestAdapter();
      const info = adapter ? `${adapter.info.vendor} ${adapter.info.architecture}` : null;
      const half = adapter?.features.has('shader-f16') ?? false;
      return { adapter: info, half, results: await runCases(ort, spec, read) };
    }, spec);
    return { versions: { 'onnxruntime-web': version('onnxruntime-web'), Chromium: page.version }, ...found };
  } finally {
    await page.end();
  }
}

console.log(JSON.stringify(await (spec.build === 'node' ? inNode() : inChromium())));

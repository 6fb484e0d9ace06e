// Load one model in a fresh headless Chromium and print, as JSON, the MiB of WebAssembly memory and of GPU buffers.
// node run_memory.mjs SPEC.json, where SPEC is {build, provider, folder, model, data, feed: {name, type, dims}}.
import { readFileSync } from 'node:fs';
import { openPage } from './chromium.mjs';

// Runs before anything else in the page: note every memory and every buffer that is made.
function watch() {
  window.memories = new Set();
  for (const kind of ['instantiate', 'instantiateStreaming']) {
    const original = WebAssembly[kind];
    WebAssembly[kind] = async (...given) => {
      const made = await original.apply(WebAssembly, given);
      for (const value of Object.values((made.instance ?? made).exports)) if (value instanceof WebAssembly.Memory) memories.add(value);
      return made;
    };
  }
  WebAssembly.Memory = new Proxy(WebAssembly.Memory, {
    construct(target, given) {
      const made = new target(...given);
      memories.add(made);
      return made;
    },
  });
  window.gpu = { now: 0, peak: 0 };
  const create = globalThis.GPUDevice?.prototype.createBuffer;
  if (!create) return;
  GPUDevice.prototype.createBuffer = function (descriptor) {
    const buffer = create.call(this, descriptor);
    gpu.peak = Math.max(gpu.peak, (gpu.now += descriptor.size));
    const destroy = buffer.destroy;
    buffer.destroy = function () {
      if (destroy) gpu.now -= descriptor.size;
      buffer.destroy = destroy;
      return destroy.call(buffer);
    };
    return buffer;
  };
}

const spec = JSON.parse(readFileSync(process.argv[2], 'utf8'));
const page = await openPage(spec.provider === 'webgpu', { '/files': spec.folder }, { prepare: watch });
try {
  const found = await page.evaluate(async (spec) => {
    const ort = await import(`/modules/onnxruntime-web/dist/${spec.build}`);
    ort.env.wasm.wasmPaths = `${location.origin}/modules/onnxruntime-web/dist/`;
    ort.env.wasm.numThreads = 2;
    const read = async (file) => new Uint8Array(await (await fetch(`/files/${file}`)).arrayBuffer());
    const mib = (bytes) => Math.round(bytes / 2 ** 20);
    const wasm = () => mib(Math.max(0, ...[...memories].map((each) => each.buffer.byteLength)));
    try {
      const externalData = [{ path: spec.data, data: await read(spec.data) }];
      const session = await ort.InferenceSession.create(await read(spec.model), { executionProviders: [spec.provider], externalData, logSeverityLevel: 3 });
      const loaded = { wasm: wasm(), gpu: mib(gpu.now) };
      const count = spec.feed.dims.reduce((a, b) => a * b);
      const array = spec.feed.type === 'int64' ? BigInt64Array.from({ length: count }, (_, i) => BigInt(i)) : new Float32Array(count);
      await session.run({ [spec.feed.name]: new ort.Tensor(spec.feed.type, array, spec.feed.dims) });
      return { loaded, run: { wasm: wasm(), gpu: mib(gpu.now) }, peak: mib(gpu.peak) };
    } catch (error) {
      return { error: String(error?.message ?? error) };
    }
  }, spec);
  console.log(JSON.stringify({ ...found, Chromium: page.version }));
} finally {
  await page.end();
}

// Load folders with transformers.js and print, as JSON, what each generates greedily.
// Takes one JSON object: home (the folder that holds them), folders (names), task (CausalLM or Seq2SeqLM), prompt
// (token ids), new_tokens, and device: cpu is Node, wasm and webgpu are a headless Chromium.
import { generate } from './generate.mjs';

const asked = JSON.parse(process.argv[2]);

async function inNode() {
  const transformers = await import('@huggingface/transformers');
  transformers.env.allowRemoteModels = false;
  transformers.env.localModelPath = asked.home;
  return generate(transformers, asked);
}

async function inChromium() {
  const { openPage } = await import('./chromium.mjs');
  const imports = {
    'onnxruntime-web/webgpu': '/modules/onnxruntime-web/dist/ort.webgpu.bundle.min.mjs',
    'onnxruntime-common': '/modules/onnxruntime-common/dist/esm/index.js',
  };
  const html = `<!doctype html><script type="importmap">${JSON.stringify({ imports })}</script>`;
  const page = await openPage(asked.device === 'webgpu', { '/files': asked.home }, { html });
  try {
    const found = await page.evaluate(async (asked) => {
      const transformers = await import('/modules/@huggingface/transformers/dist/transformers.web.js');
      const { env } = transformers;
      env.allowRemoteModels = false;
      env.allowLocalModels = true;
      env.localModelPath = '/files/';
      env.useBrowserCache = false;
      // The build that transformers.js takes from the network by default.
      const file = `${location.origin}/modules/onnxruntime-web/dist/ort-wasm-simd-threaded.asyncify`;
      env.backends.onnx.wasm.wasmPaths = { mjs: `${file}.mjs`, wasm: `${file}.wasm` };
      const { generate } = await import('/here/generate.mjs');
      return generate(transformers, asked);
    }, asked);
    return found.map((each) => ({ ...each, Chromium: page.version }));
  } finally {
    await page.end();
  }
}

console.log(JSON.stringify(await (asked.device === 'cpu' ? inNode() : inChromium())));

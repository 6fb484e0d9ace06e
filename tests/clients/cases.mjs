// The part of run_cases.mjs that runs beside ONNX Runtime, in Node or in the page.

const ARRAYS = { int64: BigInt64Array, float32: Float32Array, float16: globalThis.Float16Array ?? Uint16Array };
const bytes = (base64) => Uint8Array.from(atob(base64), (c) => c.charCodeAt(0));

function text(array) {
  let binary = '';
  for (const byte of new Uint8Array(array.buffer, array.byteOffset, array.byteLength)) binary += String.fromCharCode(byte);
  return btoa(binary);
}

// `read` gives the bytes of a file below the spec's folder.
export async function runCases(ort, spec, read) {
  const results = {};
  for (const each of spec.cases) {
    let session;
    try {
      const externalData = each.data ? [{ path: each.data.split('/').at(-1), data: await read(each.data) }] : [];
      const options = { executionProviders: [spec.provider], externalData, logSeverityLevel: 3, ...each.options };
      session = await ort.InferenceSession.create(await read(each.model), options);
      const feeds = {};
      for (const [name, feed] of Object.entries(each.feeds)) {
        feeds[name] = new ort.Tensor(feed.type, new ARRAYS[feed.type](bytes(feed.base64).buffer), feed.dims);
      }
      const outputs = await session.run(feeds);
      results[each.name] = { outputs: {} };
      for (const [name, value] of Object.entries(outputs)) {
        results[each.name].outputs[name] = { type: value.type, dims: value.dims, base64: text(value.data) };
      }
    } catch (error) {
      results[each.name] = { error: String(error?.message ?? error) };
    }
    try {
      await session?.release();
    } catch {
      // a session that failed may not be released either
    }
  }
  return results;
}

// The part of run_transformers_js.mjs that runs beside transformers.js, in Node or in the page.

export async function generate(transformers, asked) {
  const { Tensor, env } = transformers;
  const found = [];
  for (const folder of asked.folders) {
    try {
      const model = await transformers[`AutoModelFor${asked.task}`].from_pretrained(folder, { device: asked.device });
      const size = [1, asked.prompt.length];
      const sequence = await model.generate({
        input_ids: new Tensor('int64', BigInt64Array.from(asked.prompt, BigInt), size),
        attention_mask: new Tensor('int64', new BigInt64Array(asked.prompt.length).fill(1n), size),
        max_new_tokens: asked.new_tokens,
        min_new_tokens: asked.new_tokens,
        do_sample: false,
      });
      await model.dispose();
      const tokens = sequence.tolist()[0].map(Number);
      found.push({ tokens, 'transformers.js': env.version });
    } catch (error) {
      found.push({ error: String(error?.message ?? error), 'transformers.js': env.version });
    }
  }
  return found;
}

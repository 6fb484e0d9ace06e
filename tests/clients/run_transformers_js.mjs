// Load folders with transformers.js in Node and print, as JSON, what each generates greedily.
// Takes one JSON object: home (the folder that holds them), folders (names), prompt (token ids), new_tokens.
import { AutoModelForCausalLM, Tensor, env } from '@huggingface/transformers';

const asked = JSON.parse(process.argv[2]);
env.allowRemoteModels = false;
env.localModelPath = asked.home;

async function generate(folder) {
  try {
    const model = await AutoModelForCausalLM.from_pretrained(folder, { device: 'cpu' });
    const size = [1, asked.prompt.length];
    const sequence = await model.generate({
      input_ids: new Tensor('int64', BigInt64Array.from(asked.prompt, BigInt), size),
      attention_mask: new Tensor('int64', new BigInt64Array(asked.prompt.length).fill(1n), size),
      max_new_tokens: asked.new_tokens,
      min_new_tokens: asked.new_tokens,
      do_sample: false,
    });
    await model.dispose();
    return { tokens: sequence.tolist()[0].slice(asked.prompt.length).map(Number), 'transformers.js': env.version };
  } catch (error) {
    return { error: String(error?.message ?? error), 'transformers.js': env.version };
  }
}

const found = [];
for (const folder of asked.folders) found.push(await generate(folder));
console.log(JSON.stringify(found));

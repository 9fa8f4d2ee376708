// openai-node as its users write it; prints what came of it. argv: url, key, the folder that holds node_modules.
import { createRequire } from "node:module";
const [url, key, folder] = process.argv.slice(2);
const from = createRequire(`${folder}/package.json`);
const OpenAI = from("openai").default ?? from("openai");
const client = new OpenAI({ baseURL: `${url}/v1`, apiKey: key, maxRetries: 0 });
const ask = { model: "far", messages: [{ role: "user", content: "hello" }] };
const parameters = { type: "object", properties: { city: { type: "string" } } };
const tools = ["a", "b"].map(name => ({ type: "function", function: { name, parameters } }));
const told = {};
const answer = await client.chat.completions.create(ask);
told.answer = answer.choices[0].message.content;
told.usage = answer.usage.total_tokens;
let streamed = "", usage = [];
for await (const chunk of await client.chat.completions.create({ ...ask, stream: true, stream_options: { include_usage: true } })) {
  streamed += chunk.choices[0]?.delta?.content ?? "";
  if (chunk.usage) usage.push(chunk.usage.total_tokens);
}
told.streamed = streamed;
told["streamed usage"] = usage;
const runner = client.chat.completions.stream({ ...ask, tools });
told.called = (await runner.finalChatCompletion()).choices[0].message.tool_calls.map(c => [c.function.name, c.function.arguments]);
const schema = { type: "object", properties: { city: { type: "string" } }, required: ["city"], additionalProperties: false };
const shaped = await client.chat.completions.parse({ ...ask, response_format: { type: "json_schema", json_schema: { name: "place", schema, strict: true } } });
told.parsed = shaped.choices[0].message.parsed ?? JSON.parse(shaped.choices[0].message.content);
told.vectors = (await client.embeddings.create({ model: "far-embed", input: ["a", "four"] })).data.map(row => row.embedding);
told.models = [];
for await (const model of client.models.list()) told.models.push(model.id);
for (const [name, attempt] of [["missing", () => client.chat.completions.create({ ...ask, model: "nowhere" })],
  ["denied", () => new OpenAI({ baseURL: `${url}/v1`, apiKey: "ck-wrong", maxRetries: 0 }).chat.completions.create(ask)]]) {
  try { await attempt(); } catch (error) { told[name] = [error.constructor.name, error.status]; }
}
console.log(JSON.stringify(told));

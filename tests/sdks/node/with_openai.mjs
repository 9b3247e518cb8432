// The openai SDK for Node: whole, streamed with usage, tools on offer, and left in the middle.
import OpenAI from "openai";

const { PACELINE_URL, PACELINE_KEY, PACELINE_MODEL: model, ENGINE_METRICS } = process.env;
const api = new OpenAI({ baseURL: PACELINE_URL, apiKey: PACELINE_KEY, maxRetries: 0 });
const messages = [{ role: "user", content: "Name some rivers of Europe and their cities." }];
const asked = { model, messages, max_tokens: 16, temperature: 0 };
const weather = {
  type: "function",
  function: {
    name: "weather",
    parameters: { type: "object", properties: { city: { type: "string" } } },
  },
};

async function numRunning() {
  const text = await (await fetch(ENGINE_METRICS)).text();
  return Number(text.match(/^paceline_engine_running (\S+)/m)[1]);
}

async function running(wanted) {
  while ((await numRunning()) !== wanted) await new Promise((resolve) => setTimeout(resolve, 2));
}

async function leavePlainly() {
  const controller = new AbortController();
  const answer = await fetch(ENGINE_METRICS.replace("/metrics", "/v1/chat/completions"), {
    method: "POST",
    headers: { "content-type": "application/json" },
    body: JSON.stringify({ model, messages, max_tokens: 2000, stream: true }),
    signal: controller.signal,
  });
  await answer.body.getReader().read();
  await running(1);
  const began = performance.now();
  controller.abort();
  await running(0);
  return performance.now() - began;
}

async function leave(cancel) {
  const taken = [];
  for (let i = 0; i < 3; i++) {
    const controller = new AbortController();
    const stream = await api.chat.completions.create(
      { model, messages, max_tokens: 2000, stream: true },
      { signal: controller.signal },
    );
    const chunks = stream[Symbol.asyncIterator]();
    await chunks.next();
    await running(1);
    const began = performance.now();
    await cancel(stream, controller, chunks);
    await running(0);
    taken.push([performance.now() - began, await leavePlainly()]);
  }
  return taken;
}

const whole = await api.chat.completions.create(asked);
const chunks = [];
const options = { ...asked, stream: true, stream_options: { include_usage: true } };
for await (const chunk of await api.chat.completions.create(options)) chunks.push(chunk);
const runner = api.chat.completions.stream({ ...asked, tools: [weather] });
const helped = await runner.finalChatCompletion();
let refusal = null;
try {
  await api.chat.completions.create({ ...asked, model: "gpt-9" });
} catch (error) {
  if (!(error instanceof OpenAI.NotFoundError)) throw error;
  refusal = error.code;
}
const usage = chunks.at(-1).usage;
const said = chunks.filter((chunk) => chunk.choices.length);
console.log(
  JSON.stringify({
    whole: whole.choices[0].message.content,
    streamed: said.map((chunk) => chunk.choices[0].delta.content ?? "").join(""),
    helped: helped.choices[0].message.content,
    finish_reasons: [
      whole.choices[0].finish_reason,
      said.at(-1).choices[0].finish_reason,
      helped.choices[0].finish_reason,
    ],
    usage: [whole.usage.prompt_tokens, whole.usage.completion_tokens],
    streamed_usage: [usage.prompt_tokens, usage.completion_tokens],
    refusal,
    left: await leave(async (_stream, controller) => controller.abort()),
    left_later: await leave(async (_stream, _controller, iterator) => iterator.return()),
  }),
);

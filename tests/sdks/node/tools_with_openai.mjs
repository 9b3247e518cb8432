// Forced tool calls through the openai SDK for Node: named, required, streamed, run by its helper, and as a response.
import OpenAI from "openai";

const { PACELINE_URL, PACELINE_KEY, PACELINE_MODEL: model } = process.env;
const api = new OpenAI({ baseURL: PACELINE_URL, apiKey: PACELINE_KEY, maxRetries: 0 });
const messages = [{ role: "user", content: "How is the weather in Ghent?" }];
const description = "How the weather is in a city.";
const parameters = {
  type: "object",
  properties: { city: { type: "string", enum: ["Ghent", "Lille"] } },
  required: ["city"],
  additionalProperties: false,
};
const weather = { type: "function", function: { name: "weather", description, parameters } };
const named = { type: "function", function: { name: "weather" } };
const asked = { model, messages, tools: [weather], max_tokens: 120, temperature: 0 };
const cities = [];
const rainIn = ({ city }) => {
  cities.push(city);
  return `Rain in ${city}.`;
};

const whole = await api.chat.completions.create({ ...asked, tool_choice: named });
const [call] = whole.choices[0].message.tool_calls;
const streaming = api.chat.completions.stream({ ...asked, tool_choice: named });
const deltas = [];
streaming.on("tool_calls.function.arguments.delta", ({ arguments_delta }) => deltas.push(arguments_delta));
const streamed = (await streaming.finalChatCompletion()).choices[0].message.tool_calls[0];
const required = await api.chat.completions.create({ ...asked, tool_choice: "required" });

const told = [
  ...messages,
  whole.choices[0].message,
  { role: "tool", tool_call_id: call.id, content: rainIn(JSON.parse(call.function.arguments)) },
];
const reply = await api.chat.completions.create({ model, messages: told, max_tokens: 8, temperature: 0 });

const runs = api.chat.completions.runTools({
  ...asked,
  stream: true,
  tools: [{ type: "function", function: { ...weather.function, function: rainIn, parse: JSON.parse } }],
  tool_choice: named,
});
await runs.done();

const tool = { type: "function", name: "weather", description, parameters, strict: true };
const input = { model, input: messages, tools: [tool], tool_choice: "required", max_output_tokens: 120 };
const responses = api.responses.stream({ ...input, temperature: 0 });
const types = new Set();
for await (const event of responses) types.add(event.type);
const response = await responses.finalResponse();

console.log(
  JSON.stringify({
    calls: [call, streamed, ...required.choices[0].message.tool_calls].map((each) => each.function.name),
    arguments: [call, streamed].map((each) => each.function.arguments),
    deltas: deltas.join(""),
    reason: required.choices[0].finish_reason,
    reply: reply.choices[0].message.content,
    roles: runs.messages.map((message) => message.role),
    cities,
    response: response.output.filter((item) => item.type === "function_call").map((item) => item.arguments),
    events: [...types],
  }),
);

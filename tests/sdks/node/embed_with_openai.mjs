// Vectors through the openai SDK for Node: as it asks by itself, and as floats.
import OpenAI from "openai";

const { PACELINE_URL, PACELINE_KEY, PACELINE_MODEL: model } = process.env;
const api = new OpenAI({ baseURL: PACELINE_URL, apiKey: PACELINE_KEY, maxRetries: 0 });
const input = ["A grey heron waits.", "The clock on the wall is slow."];

const plain = await api.embeddings.create({ model, input }); // it asks for base64 and gives floats
const floats = await api.embeddings.create({ model, input, encoding_format: "float" });
let refused = null;
try {
  await api.embeddings.create({ model, input, dimensions: 8 });
} catch (error) {
  if (!(error instanceof OpenAI.BadRequestError)) throw error;
  refused = error.status;
}
console.log(
  JSON.stringify({
    plain: plain.data.map((each) => [...each.embedding]),
    floats: floats.data.map((each) => each.embedding),
    usage: [plain.usage.prompt_tokens, plain.usage.total_tokens],
    refused,
  }),
);

// Reads streams from standard input, a JSON list of lists of chunks; writes what the accumulator of
// OpenAI's SDK makes of the tool calls in each, null where it raises an error.
import { ChatCompletionStream } from "openai/lib/ChatCompletionStream";
import { text } from "node:stream/consumers";

async function toolCalls(chunks) {
  const lines = chunks.map((chunk) => JSON.stringify(chunk) + "\n");
  const body = new Blob(lines).stream();
  try {
    const whole = await ChatCompletionStream.fromReadableStream(body).finalChatCompletion();
    return whole.choices[0].message.tool_calls;
  } catch {
    return null;
  }
}

const streams = JSON.parse(await text(process.stdin));
process.stdout.write(JSON.stringify(await Promise.all(streams.map(toolCalls))));

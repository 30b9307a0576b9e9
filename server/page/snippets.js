// A request → what does the same in a shell, and in Python. The key is left to the environment.

export function asCurl(base, request, needsKey) {
  const key = needsKey ? ` \\\n  -H "Authorization: Bearer $OPENAI_API_KEY"` : "";
  // A here-document, since an image is longer than an argument may be; no line of JSON is its end.
  return `curl -N ${quoted(`${base}/chat/completions`)} \\
  -H 'Content-Type: application/json'${key} \\
  --data-binary @- <<'END_OF_REQUEST'
${JSON.stringify(request, null, 2)}
END_OF_REQUEST
`;
}

export function asPython(base, { model, messages }, needsKey) {
  const key = needsKey ? 'os.environ["OPENAI_API_KEY"]' : '"none"';
  return `${needsKey ? "import os\n\n" : ""}from openai import OpenAI

client = OpenAI(base_url=${JSON.stringify(base)}, api_key=${key})
stream = client.chat.completions.create(
    model=${JSON.stringify(model)},
    messages=${indented(JSON.stringify(messages, null, 4))},
    stream=True,
)
for chunk in stream:
    for choice in chunk.choices:
        text = getattr(choice.delta, "reasoning_content", None) or choice.delta.content
        print(text or "", end="", flush=True)
`;
}

function quoted(text) {
  return `'${text.replaceAll("'", `'\\''`)}'`;
}

function indented(text) {
  return text.replaceAll("\n", "\n    ");
}

// Python source, line by line → nodes with a class for each kind of token. Remembers only whether a
// triple-quoted string is open.

const KEYWORDS = new Set(
  ("False None True and as assert async await break case class continue def del elif else except finally for " +
    "from global if import in is lambda match nonlocal not or pass raise return try while with yield").split(" "),
);
const MAX_LINE = 2000;
const TOKEN = new RegExp(
  [
    /(?<comment>#.*)/,
    /(?<triple>[rbfu]{0,2}(?:"""|'''))/,
    /(?<string>[rbfu]{0,2}(?:"(?:[^"\\]|\\.)*"?|'(?:[^'\\]|\\.)*'?))/,
    /(?<number>(?:0[xob][\da-f_]+|\d[\d_]*(?:\.[\d_]*)?(?:e[+-]?\d+)?j?))/,
    /(?<name>[\p{L}_][\p{L}\p{N}_]*)/,
    /(?<other>[^\p{L}\p{N}_#"']+|.)/,
  ]
    .map((part) => part.source)
    .join("|"),
  "iuy",
);

export class PythonHighlighter {
  #quotes = "";
  #named = false; // a name follows `def` or `class`

  line(text) {
    const nodes = [];
    if (text.length > MAX_LINE) return [text];
    let at = this.#quotes ? this.#untilQuotes(text, 0, nodes) : 0;
    while (at < text.length) {
      TOKEN.lastIndex = at;
      const { groups } = TOKEN.exec(text);
      const begin = at;
      at = TOKEN.lastIndex;
      if (groups.triple) {
        this.#quotes = groups.triple.slice(-3);
        at = this.#untilQuotes(text, at, nodes, begin);
      } else nodes.push(this.#node(groups, text.slice(begin, at), text.slice(at)));
    }
    return nodes;
  }

  #untilQuotes(text, from, nodes, begin = from) {
    const end = text.indexOf(this.#quotes, from);
    const stop = end === -1 ? text.length : end + 3;
    if (end !== -1) this.#quotes = "";
    if (stop > begin) nodes.push(token("string", text.slice(begin, stop)));
    return stop;
  }

  #node(groups, text, rest) {
    if (groups.comment) return token("comment", text);
    if (groups.string) return token("string", text);
    if (groups.number) return token("number", text);
    if (!groups.name) return text;
    if (KEYWORDS.has(text)) {
      this.#named = text === "def" || text === "class";
      return token("keyword", text);
    }
    const isName = this.#named || rest.startsWith("(");
    this.#named = false;
    return isName ? token("name", text) : text;
  }
}

function token(kind, text) {
  const span = document.createElement("span");
  span.className = kind;
  span.textContent = text;
  return span;
}

// Reads queries from standard input, a JSON list; writes a list of what Grafana's own grammar of
// LogQL finds wrong in each: the places, of which there should be none.

import { createRequire } from "node:module";
import { text } from "node:stream/consumers";

const { parser } = createRequire(import.meta.url)("@grafana/lezer-logql");

function errors(query) {
  const places = [];
  parser.parse(query).iterate({
    enter: (node) => {
      if (node.type.isError) places.push(node.from);
    },
  });
  return places;
}

const queries = JSON.parse(await text(process.stdin));
process.stdout.write(JSON.stringify(queries.map(errors)));

// Which keys the reference sends and we do not, and the other way round.
//
//   node compare.mjs --kinds WIRE_DIRECTORY            lists the frame kinds in recordings of the reference
//   node compare.mjs --add WIRE_DIRECTORY KIND...      writes their key sets to expected/
//   node compare.mjs --update WIRE_DIRECTORY           writes those of expected/ again
//   node compare.mjs --rows RECORDING.jsonl...         prints the rows that docs/COMPATIBILITY.md needs
//
// A frame kind ("answer to node.list", "event tick", "refusal PAIRING_REQUIRED") has a key set: each path at which any of
// its frames holds a value, with the types seen there. `[]` stands for any index.

import { copyFileSync, existsSync, mkdirSync, readdirSync, readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { fileURLToPath } from "node:url";

const here = fileURLToPath(new URL(".", import.meta.url));
const EXPECTED = join(here, "expected");
const DOCUMENT = join(here, "../../docs/COMPATIBILITY.md");
const HEADING = "## Wire differences";

/**
 * Recordings of the official CLI and node, and of an operator with a device: admitted, and asked to pair. The others hold
 * hand-made clients and the Control UI.
 */
const OFFICIAL = /^([abc]_.*|d_ok_v3|dp_pw_dev_new)\.jsonl$/;

/** Of these, only what concerns the approvals themselves: who else was there is of no interest. */
const APPROVALS = /^e_exec_approval_.*\.jsonl$/;

/** Where the keys are somebody else's: a node's result, a method's own parameters as text. */
const RELAYED = {
  "answer to exec.approvals.node.get": ["file"],
  "answer to exec.approvals.node.set": ["file"],
  "answer to node.invoke": ["payload"],
};

const typeOf = (value) => (value === null ? "null" : Array.isArray(value) ? "array" : typeof value);

function walk(value, path, relayed, keys) {
  if (path !== "") {
    keys.set(path, (keys.get(path) ?? new Set()).add(typeOf(value)));
    if (relayed.includes(path)) return;
  }
  if (Array.isArray(value)) for (const item of value) walk(item, `${path}[]`, relayed, keys);
  else if (value !== null && typeof value === "object") {
    for (const [key, item] of Object.entries(value)) walk(item, path ? `${path}.${key}` : key, relayed, keys);
  }
}

/** The key sets of one or more recordings: kind -> path -> types. */
function keySets(files) {
  const kinds = new Map();
  const add = (kind, value) => {
    if (!kinds.has(kind)) kinds.set(kind, new Map());
    walk(value, "", RELAYED[kind] ?? [], kinds.get(kind));
  };
  for (const file of files) {
    const calls = new Map();
    for (const line of readFileSync(file, "utf8").split("\n").filter(Boolean)) {
      const { dir, conn, frame } = JSON.parse(line);
      if (frame === null || typeof frame !== "object") continue;
      const call = `${conn} ${frame.id}`;
      if (dir === "c2g") {
        if (frame.type === "req") calls.set(call, frame);
      } else if (frame.type === "event") add(`event ${frame.event}`, frame.payload ?? null);
      else if (frame.ok === false) add(`refusal ${frame.error.details?.code ?? frame.error.code}`, frame.error);
      else if (calls.get(call)?.method === "connect") add(`hello-ok to ${calls.get(call).params.role}`, frame.payload);
      else if (calls.has(call)) add(`answer to ${calls.get(call).method}`, frame.payload ?? null);
    }
  }
  return kinds;
}

const parent = (path) => path.replace(/(\[\]|\.[^.[]*|^[^.[]*)$/, "");

/** Is a key that only one side has a part of something that only that side has? Then the whole is the difference. */
const topmost = (path, other) => {
  const up = parent(path);
  return up === "" || other.has(up);
};

/** An array that one side never filled says nothing about its items. */
const unfilled = (path, other) => path.endsWith("[]") && other.has(path.slice(0, -2));

/** Rows `{frame, key, side}` for the kinds that both sides send. */
function differences(ours, theirs) {
  const rows = [];
  for (const [frame, their] of theirs) {
    const our = ours.get(frame);
    if (!our) continue;
    for (const [key, types] of their) {
      if (!our.has(key)) {
        if (topmost(key, our) && !unfilled(key, our)) rows.push({ frame, key, side: "theirs" });
      } else if (![...types].some((type) => our.get(key).has(type))) rows.push({ frame, key, side: "type" });
    }
    for (const key of our.keys()) {
      if (!their.has(key) && topmost(key, their) && !unfilled(key, their)) rows.push({ frame, key, side: "ours" });
    }
  }
  return rows.sort((a, b) => text(a).localeCompare(text(b)));
}

const text = ({ frame, key, side }) => `${frame} | ${key} | ${side}`;

function official(directory) {
  const names = readdirSync(directory).sort();
  const read = (pattern) => keySets(names.filter((name) => pattern.test(name)).map((name) => join(directory, name)));
  const approvals = [...read(APPROVALS)].filter(([kind]) => kind.includes(" exec."));
  return new Map([...read(OFFICIAL), ...approvals]);
}

const fileName = (kind) => `${kind.replace(/[^A-Za-z0-9.]+/g, "-")}.json`;

function readExpected() {
  const kinds = new Map();
  for (const name of readdirSync(EXPECTED)) {
    const { frame, keys } = JSON.parse(readFileSync(join(EXPECTED, name), "utf8"));
    kinds.set(frame, new Map(Object.entries(keys).map(([key, types]) => [key, new Set(types)])));
  }
  return kinds;
}

function asJson(frame, keys) {
  const sorted = [...keys].sort(([a], [b]) => (a < b ? -1 : 1)).map(([key, types]) => [key, [...types].sort()]);
  const lines = sorted.map(([key, types]) => `    ${JSON.stringify(key)}: ${JSON.stringify(types)}`);
  return `{\n  "frame": ${JSON.stringify(frame)},\n  "keys": {\n${lines.join(",\n")}\n  }\n}\n`;
}

/** Fails when the committed key sets are not those of the recordings. */
export function checkExpected(directory) {
  const seen = official(directory);
  const wrong = [...readExpected()].filter(([frame, keys]) => !seen.has(frame) || asJson(frame, keys) !== asJson(frame, seen.get(frame)));
  if (wrong.length > 0) throw new Error(`differ: ${wrong.map(([frame]) => frame).join(", ")}; see compare.mjs --update`);
}

/** The rows of the table under "Wire differences". */
function tableRows() {
  const [, section = ""] = readFileSync(DOCUMENT, "utf8").split(`${HEADING}\n`);
  return section
    .split(/^## /m)[0]
    .split("\n")
    .filter((line) => line.startsWith("|"))
    .map((line) => line.split("|").slice(1, -1).map((cell) => cell.trim().replace(/^`|`$/g, "")))
    .filter(([frame]) => frame !== "Frame" && !/^-+$/.test(frame))
    .map(([frame, key, side, why]) => ({ frame, key, side, why }));
}

/** Fails when the table lacks a difference, lists one that is none, or gives no reason. */
export function checkTable(files) {
  const ours = keySets(files);
  const found = new Map(differences(ours, readExpected()).map((row) => [text(row), row]));
  const listed = new Map(tableRows().map((row) => [text(row), row]));
  const complaints = [];
  for (const key of found.keys()) if (!listed.has(key)) complaints.push(`not listed: ${key}`);
  for (const [key, row] of listed) {
    if (!row.why) complaints.push(`no reason: ${key}`);
    if (ours.has(row.frame) && !found.has(key)) complaints.push(`not a difference: ${key}`);
  }
  if (complaints.length > 0) throw new Error(complaints.join("\n"));
}

/** The validator looks for its packages beside itself. */
export function installValidator(packages) {
  for (const name of ["validate.mjs", "exceptions.json"]) copyFileSync(join(here, "schema", name), join(packages, name));
  return join(packages, "validate.mjs");
}

if (process.argv[1] === fileURLToPath(import.meta.url)) {
  const [option, ...rest] = process.argv.slice(2);
  if (option === "--update" && rest.length === 1 && existsSync(rest[0])) {
    mkdirSync(EXPECTED, { recursive: true });
    const seen = official(rest[0]);
    for (const name of readdirSync(EXPECTED)) {
      const { frame } = JSON.parse(readFileSync(join(EXPECTED, name), "utf8"));
      writeFileSync(join(EXPECTED, name), asJson(frame, seen.get(frame)));
    }
  } else if (option === "--add" && rest.length >= 2) {
    mkdirSync(EXPECTED, { recursive: true });
    const seen = official(rest.shift());
    for (const frame of rest) writeFileSync(join(EXPECTED, fileName(frame)), asJson(frame, seen.get(frame)));
  } else if (option === "--kinds" && rest.length === 1) {
    for (const [frame, keys] of official(rest[0])) console.log(`${frame}: ${keys.size} keys`);
  } else if (option === "--rows" && rest.length > 0) {
    for (const row of differences(keySets(rest), readExpected())) console.log(`| ${row.frame} | \`${row.key}\` | ${row.side} |  |`);
  } else {
    console.error("usage: compare.mjs --update WIRE | --add WIRE KIND... | --kinds WIRE | --rows RECORDING...");
    process.exit(2);
  }
}

// What the groups share: how a test is told, and the steps that many of them take.

import { execFileSync } from "node:child_process";
import * as lib from "./lib.mjs";
import { check, until } from "./lib.mjs";

export const counts = { passed: 0, failed: 0 };
export const recordings = new Map();
export const programs = [];
export const UNAME = execFileSync("uname", ["-a"], { encoding: "utf8" }).trim();
export const WHICH = ["--command", "system.which", "--params", '{"bins":["sh"]}'];

/** Runs one test. Returns what `body` returns, or undefined when it failed. */
export async function test(name, body) {
  const began = performance.now();
  const seconds = () => `${((performance.now() - began) / 1000).toFixed(1)} s`;
  try {
    const value = await body();
    counts.passed += 1;
    console.log(`PASS ${name} (${seconds()})`);
    return value ?? true;
  } catch (error) {
    counts.failed += 1;
    console.log(`FAIL ${name} (${seconds()})\n${String(error.message).replace(/^/gm, "     | ")}`);
    return undefined;
  }
}

/** Runs an official command that must succeed and say each of `expected`. */
export function official(home, command, ...expected) {
  return test(`official CLI: openclaw ${command.map((word) => (word.length > 40 ? "…" : word)).join(" ")}`, () =>
    succeeds(home, command, ...expected),
  );
}

export async function succeeds(home, command, ...expected) {
  const result = await lib.openclaw(home, command);
  check(result.code === 0, `exit code ${result.code}`, result.text);
  for (const part of expected) {
    const found = part instanceof RegExp ? part.test(result.out) : result.out.includes(part);
    check(found, `the output lacks ${part}`, result.text);
  }
  return result;
}

export async function refusedBy(home, command, ...expected) {
  const result = await lib.openclaw(home, command);
  check(typeof result.code === "number" && result.code !== 0, `exit code ${result.code}`, result.text);
  for (const part of expected) check(result.text.includes(part), `the output lacks ${part}`, result.text);
}

export function startNode(name, gateway, secret, home) {
  home ??= lib.officialHome(`${name}-home`, { port: gateway.recorder.port });
  const program = lib.officialNode(name, home, gateway.recorder.port, secret);
  programs.push(program);
  return { name, home, program };
}

/** Our node host. A second start under the same name has the same home. */
export function startOurNode(name, port, secret, config) {
  const args = ["node", "run", "--host", "127.0.0.1", "--port", String(port), "--display-name", name];
  const program = new lib.Program(name, lib.portcullis, args, lib.ourEnv(lib.ourHome(name, config), secret));
  programs.push(program);
  return program;
}

export const connects = (gateway) =>
  gateway.recorder.lines.filter(({ frame }) => frame?.method === "connect" && frame.params.role === "node");

/** The connect requests of nodes that were answered with hello-ok, in order. */
export function admitted(gateway) {
  return connects(gateway).filter(({ conn, frame }) =>
    gateway.recorder.lines.some((line) => line.conn === conn && line.frame?.id === frame.id && line.frame.ok === true),
  );
}

export async function pendingSurface(gateway, name) {
  return until(`the surface of ${name} pends`, lib.NODE_START_MS, async () => {
    const { pending } = await gateway.json(["nodes", "pending"]);
    return pending.find((request) => request.displayName === name);
  });
}

export async function runsUname(gateway, message) {
  const before = gateway.recorder.lines.length;
  const result = await gateway.cli(["agent", "--message", message]);
  check(result.code === 0, `portcullis agent: exit code ${result.code}`, result.text);
  check(result.out.split("\n").some((line) => line.trim() === UNAME), `the answer lacks "${UNAME}"`, result.text);
  const results = gateway.recorder.lines
    .slice(before)
    .filter(({ frame }) => frame?.method === "node.invoke.result" && frame.params.ok)
    .map(({ frame }) => JSON.parse(frame.params.payloadJSON));
  check(
    results.some((payload) => payload.stdout?.trim() === UNAME),
    "no result of the node holds it",
    results,
  );
}

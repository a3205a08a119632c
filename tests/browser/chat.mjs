// The chat page in a real browser, against `portcullis quickstart`. Every context is a browser of its own: nothing that
// one keeps (key, device token) is there for the next.

import { spawn } from "node:child_process";
import { mkdirSync, mkdtempSync, rmSync } from "node:fs";
import http from "node:http";
import { createRequire } from "node:module";
import net from "node:net";
import os from "node:os";
import { join } from "node:path";

import { proxySuite } from "./proxy.mjs";

const STEP_MS = 10_000;
const START_MS = 20_000;
const ALL_MS = 240_000;
const CHROMIUM_ARGS = [
  "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking",
  "--disable-component-update", "--disable-sync", "--disable-dev-shm-usage",
];

const { chromium } = createRequire(join(process.env.BROWSER_PACKAGES, "package.json"))("playwright-core");
const portcullis = process.env.PORTCULLIS_BIN;
const shots = process.env.PORTCULLIS_SHOTS;

// A short path: a Unix socket's name has at most 107 bytes.
const work = mkdtempSync(join(os.tmpdir(), "browser-"));
const env = { PATH: process.env.PATH, HOME: work, TMPDIR: work, LANG: "C.UTF-8" };
const running = new Set();
const servers = [];
let browser = null;

// Programs, each with a group of its own, so that whatever it starts ends with it.

function start(args, extra = {}) {
  const program = { out: "", err: "", exit: undefined };
  const child = spawn(portcullis, args, { env: { ...env, ...extra }, cwd: work, detached: true, stdio: ["ignore", "pipe", "pipe"] });
  child.stdout.on("data", (bytes) => (program.out += bytes));
  child.stderr.on("data", (bytes) => (program.err += bytes));
  running.add(program);
  program.done = new Promise((resolve) => {
    child.once("error", (error) => resolve((program.exit = error.message)));
    child.once("close", (code, signal) => resolve((program.exit = code ?? signal)));
  }).finally(() => running.delete(program));
  program.signal = (name) => {
    try {
      process.kill(-child.pid, name);
    } catch {
      // It ended meanwhile.
    }
  };
  program.stop = async () => {
    program.signal("SIGTERM");
    await Promise.race([program.done, sleep(5_000)]);
    program.signal("SIGKILL");
    await program.done;
  };
  return program;
}

const sleep = (ms) => new Promise((resolve) => setTimeout(resolve, ms));

async function until(what, limitMs, probe) {
  const end = performance.now() + limitMs;
  for (;;) {
    const found = await probe();
    if (found) return found;
    if (performance.now() > end) throw new Error(`not within ${limitMs / 1000} s: ${what}`);
    await sleep(50);
  }
}

function listen(server) {
  servers.push(server);
  return new Promise((resolve, reject) => {
    server.once("error", reject);
    server.listen(0, "127.0.0.1", () => resolve(server.address().port));
  });
}

async function freePort() {
  const server = net.createServer();
  const port = await listen(server);
  await new Promise((resolve) => server.close(resolve));
  return port;
}

/** Starts Gateway and node; returns what a newcomer reads on the terminal. */
async function quickstart(port) {
  const program = start(["quickstart", "--port", String(port)]);
  await until("quickstart serves", START_MS, () => {
    if (program.exit !== undefined) throw new Error(`quickstart ended: ${program.exit} ${program.err}`);
    return program.out.includes("Serving until Ctrl-C.");
  });
  const find = (pattern) => pattern.exec(program.out)?.[1] ?? "";
  return { program, link: find(/(http:\S+#bootstrap=\S+)/), password: find(/^ +password +(\S+)/m) };
}

// Browsers, and all that they did.

async function visitor(name, options = {}) {
  const context = await browser.newContext({ viewport: { width: 1000, height: 720 }, ...options });
  context.setDefaultTimeout(STEP_MS);
  const seen = { name, requests: [], sockets: [], headers: [], console: [], violations: [], early: [] };
  context.on("request", async (request) => {
    seen.requests.push(request.url());
    seen.headers.push(JSON.stringify(await request.allHeaders().catch(() => ({}))));
  });
  await context.exposeBinding("violated", (_, text) => seen.violations.push(text));
  await context.exposeBinding("parsed", (_, address) => seen.early.push(address));
  await context.addInitScript(() => {
    document.addEventListener("securitypolicyviolation", (event) => {
      window.violated(`${event.violatedDirective} ${event.blockedURI} ${event.sourceFile}:${event.lineNumber}`);
    });
    // Fires once the page's script has run from its first line to its last.
    document.addEventListener("DOMContentLoaded", () => window.parsed(location.href));
  });
  const page = await context.newPage();
  page.on("console", (message) => {
    if (["error", "warning"].includes(message.type())) seen.console.push(message.text());
  });
  page.on("pageerror", (error) => seen.console.push(String(error)));
  page.on("websocket", (socket) => {
    const one = { url: socket.url(), error: "" };
    seen.sockets.push(one);
    socket.on("socketerror", (error) => (one.error = error));
  });
  return { context, page, seen };
}

async function state(page, text) {
  await page.locator("#state", { hasText: text }).waitFor().catch(async () => {
    const shown = await page.locator("body").innerText();
    throw new Error(`the page never said "${text}" but ${JSON.stringify(shown.slice(0, 600))}`);
  });
}

const signedIn = async (page) => {
  await state(page, "connected");
  await page.locator("#composer").waitFor();
};

async function say(page, text) {
  await page.locator("#text").fill(text);
  await page.keyboard.press("Enter");
}

const reply = (page, text) => page.locator("#log > .assistant", { hasText: text }).last().waitFor();
const shot = async (page, name) => shots && page.screenshot({ path: join(shots, `${name}.png`) });

// The suite.

let passed = 0;
let failed = 0;

async function test(name, body) {
  const began = performance.now();
  try {
    await body();
    passed += 1;
    console.log(`PASS ${name} (${Math.round(performance.now() - began)} ms)`);
  } catch (error) {
    failed += 1;
    console.log(`FAIL ${name}\n     ${String(error.message ?? error).replaceAll("\n", "\n     ")}`);
  }
}

function check(condition, sentence, evidence) {
  if (!condition) throw new Error(`${sentence}: ${JSON.stringify(evidence)}`);
}

async function suite() {
  const port = await freePort();
  const origin = `http://127.0.0.1:${port}`;
  const socketUrl = `ws://127.0.0.1:${port}/`;
  const stateDir = join(work, ".openclaw-quickstart");
  let gateway = await quickstart(port);
  const code = gateway.link.split("=")[1];
  check(gateway.link.startsWith(`${origin}/#`) && code, "quickstart prints the chat page's link", gateway.program.out);
  check(gateway.password.length >= 16, "and the password", gateway.program.out);
  check(!gateway.link.includes(gateway.password), "B1: the link holds no password", gateway.link);

  // The system's Chromium is no build of Playwright's, so that its sandbox and its updates are ours to turn off.
  browser = await chromium.launch({
    executablePath: process.env.PORTCULLIS_CHROMIUM,
    env,
    args: CHROMIUM_ARGS,
  });
  const first = await visitor("first");
  const { page } = first;

  await test("the link signs in, and its code leaves the address bar and the history at once", async () => {
    await page.goto(gateway.link);
    await signedIn(page);
    check(first.seen.early[0] === `${origin}/`, "erased before the page is ready", first.seen.early);
    const { entries } = await (await first.context.newCDPSession(page)).send("Page.getNavigationHistory");
    const addresses = entries.map((entry) => entry.url).filter((url) => url !== "about:blank");
    check(addresses.join() === `${origin}/`, "the history holds the bare address alone", addresses);
    await shot(page, "1-empty-light");
  });

  await test("/run uname -a answers with what this machine is", async () => {
    await say(page, "/run uname -a");
    // The first of the two is quickstart's own.
    await page.locator("#log > .assistant", { hasText: `Linux ${os.hostname()} ${os.release()}` }).nth(1).waitFor();
    await page.locator("#log summary", { hasText: "exec: uname -a · quickstart-node · exit 0" }).nth(1).waitFor();
    check((await page.locator("#log > .user").last().innerText()) === "/run uname -a", "the message is shown as typed", "");
    check((await page.locator("#text").inputValue()) === "", "the field is empty again", "");
  });

  await test("/help lists the commands", async () => {
    await say(page, "/help");
    await reply(page, "/nodes");
  });

  await test("plain text is told that no model is configured", async () => {
    await say(page, "hello there");
    await reply(page, /no model/i);
  });

  await test("a command that runs on is shown as running, and Stop ends it", async () => {
    await say(page, "/run echo begun; sleep 60; echo ended");
    await page.locator("#log summary", { hasText: "exec: echo begun; sleep 60; echo ended · running" }).waitFor();
    await shot(page, "2-running-light");
    await page.locator("#stop").click();
    await page.locator("#stop").waitFor({ state: "hidden" });
    await page.locator("#log > .note", { hasText: "This turn was stopped on request." }).waitFor();
    const log = await page.locator("#log").innerText();
    check(!log.includes("\nended") && !log.includes("running"), "the command ended early", log.slice(-400));
  });

  await test("markup in an output stays text", async () => {
    await say(page, `/run printf '<img src=x onerror=alert(1)><b>bold</b>'`);
    await reply(page, "<b>bold</b>");
    check((await page.locator("#log img, #log b").count()) === 0, "no element was made of it", "");
    await shot(page, "3-chat-light");
  });

  await test("a reload is signed in by the device token, with the history", async () => {
    await page.reload();
    await signedIn(page);
    await reply(page, `Linux ${os.hostname()}`);
    check((await page.locator("#log > .user").first().innerText()) === "/run uname -a", "oldest first", "");
    await shot(page, "4-reloaded-light");
  });

  await test("the spent link, opened again in the same browser, is signed in all the same", async () => {
    await page.goto("about:blank");
    await page.goto(gateway.link);
    await signedIn(page);
    check(new URL(page.url()).hash === "", "the code is erased again", page.url());
  });

  await test("B2: the spent link in another browser is refused in a sentence", async () => {
    const second = await visitor("second");
    await second.page.goto(gateway.link);
    const why = second.page.locator("#gate-why", { hasText: "AUTH_BOOTSTRAP_TOKEN_INVALID" });
    await why.waitFor();
    const text = await why.innerText();
    check(/^This sign-in link .+\. .+ \(AUTH_BOOTSTRAP_TOKEN_INVALID\)$/.test(text), "it reads as a sentence", text);
    check(await second.page.locator("#secret").isVisible(), "another way in is offered", "");
    check(await second.page.locator("#composer").isHidden(), "no chat", "");
    await shot(second.page, "5-spent-link-light");
    await clean(second);
  });

  await test("a typed password pends until the CLI approves the browser", async () => {
    const third = await visitor("third", { colorScheme: "dark" });
    await third.page.goto(`${origin}/`);
    await third.page.locator("#secret").waitFor();
    await shot(third.page, "6-sign-in-dark");
    await third.page.locator("#secret").fill(`not ${gateway.password}`);
    await third.page.keyboard.press("Enter");
    await third.page.locator("#gate-why", { hasText: "AUTH_PASSWORD_MISMATCH" }).waitFor();
    await shot(third.page, "7-wrong-password-dark");
    await third.page.locator("#secret").fill(gateway.password);
    await third.page.keyboard.press("Enter");
    await state(third.page, "waiting for approval");
    const command = await third.page.locator("#approve").innerText();
    check(/^portcullis devices approve [0-9a-f-]{36}$/.test(command), "the command is there to copy", command);
    await shot(third.page, "8-pairing-dark");
    const rejecting = start(["devices", "reject", command.split(" ").at(-1)], { OPENCLAW_STATE_DIR: stateDir });
    check((await rejecting.done) === 0, "the CLI rejects", rejecting.err);
    await third.page.locator("#gate-why", { hasText: "declined" }).waitFor();
    await third.page.locator("#secret").fill(gateway.password);
    await third.page.keyboard.press("Enter");
    await state(third.page, "waiting for approval");
    const again = await third.page.locator("#approve").innerText();
    const approving = start(["--profile", "quickstart", ...again.split(" ").slice(1)]);
    check((await approving.done) === 0, "the CLI approves", approving.err + approving.out);
    await signedIn(third.page);
    await reply(third.page, `Linux ${os.hostname()}`);
    await shot(third.page, "9-chat-dark");
    await third.page.reload();
    await signedIn(third.page);
    await clean(third, gateway.password);
  });

  await test("U1: an address with gatewayUrl and token connects nowhere else", async () => {
    let calls = 0;
    const attacker = await listen(net.createServer((socket) => (calls += 1) && socket.destroy()));
    for (const separator of ["?", "#"]) {
      const lured = await visitor(`lured ${separator}`);
      const bait = new URLSearchParams({ gatewayUrl: `ws://127.0.0.1:${attacker}`, token: "x", password: "y" });
      await lured.page.goto(`${origin}/${separator}${bait}`);
      await lured.page.locator("#secret").waitFor();
      check(new URL(lured.page.url()).hash === "", "no fragment stays", lured.page.url());
      check(lured.seen.sockets.length === 0, "nothing was sent with the token of the address", lured.seen.sockets);
      await clean(lured);
    }
    await page.goto(`${origin}/?gatewayUrl=ws://127.0.0.1:${attacker}&token=x`);
    await signedIn(page);
    check(calls === 0, "nobody called the attacker", calls);
  });

  await test("a page of another origin gets no socket and no frame", async () => {
    const evil = await listen(
      http.createServer((_, answer) => {
        answer.setHeader("content-type", "text/html");
        answer.end("<!doctype html><link rel=icon href=data:,><body>");
      }),
    );
    const lured = await visitor("other origin");
    await lured.page.goto(`http://127.0.0.1:${evil}/`);
    const outcome = await lured.page.evaluate((url) => {
      return new Promise((resolve) => {
        const socket = new WebSocket(url);
        socket.onopen = () => resolve("open");
        socket.onclose = (event) => resolve(`close ${event.code}`);
      });
    }, socketUrl);
    check(outcome === "close 1006", "the socket is refused", outcome);
    check(/403/.test(lured.seen.sockets[0]?.error ?? ""), "with 403", lured.seen.sockets);
    await lured.page.evaluate((src) => {
      return new Promise((resolve) => {
        const frame = document.createElement("iframe");
        frame.onload = resolve;
        frame.src = src;
        document.body.append(frame);
      });
    }, `${origin}/`);
    const framed = await Promise.all(lured.page.frames().slice(1).map((frame) => frame.locator("#gate").count()));
    check(framed.every((count) => count === 0), "the frame stays empty", framed);
    await lured.context.close();
  });

  await test("a narrow window shows all without scrolling sideways", async () => {
    for (const scheme of ["light", "dark"]) {
      await page.emulateMedia({ colorScheme: scheme });
      await page.setViewportSize({ width: 390, height: 700 });
      await page.goto(`${origin}/`);
      await signedIn(page);
      const width = await page.evaluate(() => document.documentElement.scrollWidth);
      check(width <= 390, "nothing is wider than the window", width);
      await page.locator("#send").click({ trial: true });
      await shot(page, `10-narrow-${scheme}`);
    }
    await page.emulateMedia({ colorScheme: "light" });
  });

  await test("the page comes back by itself after the Gateway did", async () => {
    const sockets = first.seen.sockets.length;
    await gateway.program.stop();
    await state(page, "offline");
    await shot(page, "11-offline-narrow");
    gateway = await quickstart(port);
    await signedIn(page);
    check(first.seen.sockets.length > sockets, "over a new socket", "");
    await say(page, "/nodes");
    await reply(page, "quickstart-node");
    // The failed attempts while nobody listened are no fault of the page's.
    first.seen.console = first.seen.console.filter((text) => !text.includes("ERR_CONNECTION_REFUSED"));
  });

  await test("the first browser called nobody else, complained of nothing and showed its code to nobody", async () => {
    await clean(first, code);
  });

  /** What holds for everyone who opened the page. */
  async function clean({ context, seen }, secret = code) {
    await context.close();
    const strangers = seen.requests.filter((url) => new URL(url).origin !== origin && !/^(data|about):/.test(url));
    check(strangers.length === 0, `${seen.name}: no request to another origin`, strangers);
    const elsewhere = seen.sockets.filter(({ url }) => url !== socketUrl);
    check(elsewhere.length === 0, `${seen.name}: no socket to another origin`, elsewhere);
    check(seen.violations.length === 0, `${seen.name}: the policy had nothing to block`, seen.violations);
    check(seen.console.length === 0, `${seen.name}: no error on the console`, seen.console);
    // Playwright reports the address that was asked for; the fragment is the part that no request carries.
    const carried = [...seen.requests.map((url) => url.split("#")[0]), ...seen.headers];
    const sent = carried.filter((text) => text.includes(secret));
    check(sent.length === 0, `${seen.name}: no secret in an address or a header`, sent);
  }
}

async function end(status) {
  await browser?.close().catch(() => {});
  for (const server of servers) server.close();
  await Promise.all([...running].map((program) => program.stop()));
  rmSync(work, { recursive: true, force: true, maxRetries: 5, retryDelay: 100 });
  process.exit(status);
}

if (shots) mkdirSync(shots, { recursive: true });
setTimeout(() => {
  console.log(`FAIL the suite took more than ${ALL_MS / 1000} s\n${passed} passed, ${failed + 1} failed`);
  end(1);
}, ALL_MS).unref();
for (const signal of ["SIGINT", "SIGTERM"]) process.once(signal, () => end(2));
try {
  await suite();
  await proxySuite({
    test, check, start, until, listen, freePort, work, env, chromiumArgs: CHROMIUM_ARGS, startMs: START_MS,
  });
} catch (error) {
  failed += 1;
  console.log(`FAIL the suite could not go on\n     ${error.stack}`);
}
console.log(`${passed} passed, ${failed} failed`);
await end(failed ? 1 : 0);

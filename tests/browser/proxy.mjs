// `browser.proxy` from end to end: command line, Gateway, node host, and a Chromium with a DevTools port of its own.

import { spawn } from "node:child_process";
import { mkdirSync, readFileSync, writeFileSync } from "node:fs";
import http from "node:http";
import { join } from "node:path";

const PASSWORD = "correct horse battery staple";

/** `tools` are those of `chat.mjs`; the last of them says how Chromium is started. */
export async function proxySuite({ test, check, start, until, listen, freePort, work, env, chromiumArgs, startMs }) {
  const profile = join(work, "devtools");
  const chrome = spawn(
    process.env.PORTCULLIS_CHROMIUM,
    [...chromiumArgs, `--user-data-dir=${profile}`, "--remote-debugging-port=0", "about:blank"],
    { env, stdio: "ignore" },
  );
  const gone = new Promise((resolve) => chrome.once("close", resolve).once("error", resolve));
  const programs = [];
  try {
    const devtools = await until("Chromium tells its port", startMs, () => {
      try {
        return Number(readFileSync(join(profile, "DevToolsActivePort"), "utf8").split("\n")[0]);
      } catch {
        return 0;
      }
    });
    const page = await listen(
      http.createServer((_, answer) => {
        answer.setHeader("content-type", "text/html");
        answer.end("<!doctype html><title>a page on loopback</title>");
      }),
    );

    /** A state directory with this config, and the program in it. */
    const home = (name, config) => {
      const dir = join(work, name);
      mkdirSync(dir, { recursive: true, mode: 0o700 });
      const write = (config) => writeFileSync(join(dir, "openclaw.json"), JSON.stringify(config), { mode: 0o600 });
      write(config);
      const extra = { OPENCLAW_STATE_DIR: dir, OPENCLAW_GATEWAY_PASSWORD: PASSWORD };
      return { write, start: (args) => start(args, extra) };
    };
    const node = (allowProfiles, endpoint, enabled = true) => ({
      nodeHost: { browserProxy: { enabled, allowProfiles } },
      browser: { profiles: { work: { cdpUrl: endpoint }, private: { cdpPort: devtools } } },
    });
    const chromium = `http://127.0.0.1:${devtools}`;
    const allow = { gateway: { nodes: { commands: { allow: ["browser.proxy"] } } } };

    const port = await freePort();
    const operator = home("operator", {});
    const machine = home("machine", node(["work"], chromium));
    const serve = async () => {
      const gateway = operator.start(["gateway", "--port", String(port)]);
      programs.push(gateway);
      await until("the Gateway serves", startMs, async () => {
        if (gateway.exit !== undefined) throw new Error(`the Gateway ended: ${gateway.exit} ${gateway.err}`);
        return fetch(`http://127.0.0.1:${port}/readyz`).then((answer) => answer.ok, () => false);
      });
      return gateway;
    };
    const connect = async () => {
      const host = machine.start(["node", "run", "--port", String(port)]);
      programs.push(host);
      await until("the node connects", startMs, () => {
        if (host.exit !== undefined) throw new Error(`the node ended: ${host.exit} ${host.err}`);
        return (host.err + host.out).includes("connected to");
      });
      return { host, id: /node ([0-9a-f]{64})/.exec(host.err + host.out)?.[1] };
    };
    const cli = async (...args) => {
      const program = operator.start([...args, "--json"]);
      await program.done;
      return program;
    };
    const browser = async (id, params) => {
      const program = await cli(
        "nodes", "invoke", "--node", id, "--command", "browser.proxy", "--params", JSON.stringify(params),
      );
      return { code: program.exit, text: program.out + program.err, json: () => JSON.parse(program.out) };
    };
    const result = async (id, params) => {
      const answer = await browser(id, params);
      check(answer.code === 0, `${params.path} is answered`, answer.text);
      const payload = answer.json().payload ?? answer.json();
      return payload.result;
    };
    const refused = async (id, params, words) => {
      const answer = await browser(id, params);
      check(answer.code !== 0 && answer.text.includes(words), `refused with ${words}`, answer.text);
    };

    let gateway = await serve();
    let { host, id } = await connect();

    await test("browser.proxy waits for approval and for gateway.nodes.commands.allow", async () => {
      await refused(id, { path: "/json/version" }, "gateway.nodes.commands.allow");
      await gateway.stop();
      operator.write(allow);
      gateway = await serve();
      await until("the node is back", startMs, async () => {
        const answer = await browser(id, { path: "/json/version" });
        return answer.text.includes("pending approval");
      });
      const pending = JSON.parse((await cli("nodes", "pending")).out);
      const request = /"requestId":\s*"([^"]+)"/.exec(JSON.stringify(pending))?.[1];
      const approved = await cli("nodes", "approve", request ?? "none");
      check(approved.exit === 0, "the surface is approved", [pending, approved.err]);
      const version = await result(id, { path: "/json/version" });
      check(/Chrom/.test(version.Browser), "the browser says what it is", version);
    });

    await test("browser.proxy opens a page, reads its title and closes it", async () => {
      const url = `http://127.0.0.1:${page}/a?b=c&d=ü`;
      const opened = await result(id, { method: "POST", path: "/json/new", query: { url }, profile: "work" });
      check(opened.url === encodeURI(url), "at the address that was asked for", opened);
      const expression = "new Promise((done) => document.readyState === 'complete' ? done(document.title) : addEventListener('load', () => done(document.title)))";
      const body = { method: "Runtime.evaluate", params: { expression, awaitPromise: true } };
      const title = await until("the page is there", startMs, async () => {
        const answer = await result(id, { method: "POST", path: `/cdp/${opened.id}`, body });
        return answer.result.value;
      });
      check(title === "a page on loopback", "its title", title);
      await result(id, { method: "POST", path: `/json/activate/${opened.id}` });
      const closed = await result(id, { method: "DELETE", path: `/json/close/${opened.id}` });
      check(closed === "Target is closing", "Chromium closes it", closed);
      await until("it is gone", startMs, async () => {
        const list = await result(id, { path: "/json/list" });
        return !list.some((target) => target.id === opened.id);
      });
      await refused(id, { method: "POST", path: `/cdp/${opened.id}`, body }, "no such target");
    });

    await test("browser.proxy refuses foreign profiles, their changes and what it does not serve", async () => {
      await refused(id, { path: "/json/list", profile: "private" }, "browser profile not allowed");
      await refused(id, { path: "/json/list", query: { profile: "private" } }, "browser profile not allowed");
      await refused(id, { method: "POST", path: "/profiles/create" }, "cannot mutate persistent");
      await refused(id, { path: "/snapshot" }, "this node serves");
      const [target] = await result(id, { path: "/json/list" });
      const body = { method: "No.such" };
      await refused(id, { method: "POST", path: `/cdp/${target.id}`, body }, "the browser says");
    });

    await test("browser.proxy is gone once the node no longer enables it, and its endpoint is on loopback", async () => {
      await host.stop();
      machine.write(node(["work"], "http://10.0.0.42:9222"));
      const elsewhere = machine.start(["node", "run", "--port", String(port)]);
      check((await elsewhere.done) === 78, "another machine's browser is refused by name", elsewhere.err);
      check(elsewhere.err.includes("browser.profiles.work.cdpUrl"), "with its setting", elsewhere.err);
      machine.write(node(["work"], chromium, false));
      ({ host, id } = await connect());
      await refused(id, { path: "/json/list" }, "command not declared by node");
    });
  } finally {
    await Promise.all(programs.map((program) => program.exit === undefined && program.stop()));
    chrome.kill();
    await gone;
  }
}

// What the official CLI takes away again: each command against our Gateway, and what it does to the node that it is about.

import * as lib from "./lib.mjs";
import { check, until } from "./lib.mjs";
import { Identity, OldNode, fails, Party } from "./library.mjs";
import { official, pendingSurface, recordings, runsUname, succeeds, test } from "./steps.mjs";

export async function administration() {
  const config = { gateway: { nodes: { pairing: { autoApproveLocal: false } } } };
  const gateway = await lib.Gateway.start("administration", "token", config);
  recordings.set("administration", gateway.recorder);
  const home = lib.officialHome("administration-cli", gateway.clientConfig);
  const operator = new Party(gateway, { token: gateway.secret });
  const secret = { token: gateway.secret };
  const closed = async (node, body) => {
    const before = node.closes.length;
    await body();
    return until("its connection is closed", lib.STEP_MS, () => node.closes[before], 50);
  };

  await test("official CLI: devices reject", async () => {
    const unwanted = new OldNode(gateway, "unwanted", secret, new Identity());
    const { details } = await unwanted.refusal();
    await unwanted.stop();
    await succeeds(home, ["devices", "reject", details.requestId]);
    await operator.event("device.pair.resolved", ({ decision, requestId }) => decision === "rejected" && requestId === details.requestId);
    const { pending, paired } = await gateway.json(["devices", "list"]);
    check(pending.length === 0 && paired.length === 0, "it left a trace", { pending, paired });
  });

  const identity = new Identity();
  const { deviceId } = identity.device;
  let node = new OldNode(gateway, "theta", secret, identity);
  const again = async (options) => {
    await node.stop();
    node = new OldNode(gateway, "theta", options, identity);
    return node.hello();
  };
  const invoke = (idempotencyKey) =>
    operator.call("node.invoke", { nodeId: deviceId, command: "system.run.prepare", params: { command: ["id"] }, idempotencyKey });

  const rejected = await test("official CLI: nodes reject", async () => {
    const { details } = await node.refusal();
    await gateway.json(["devices", "approve", details.requestId]);
    await node.hello();
    const { requestId } = await pendingSurface(gateway, "theta");
    await succeeds(home, ["nodes", "reject", requestId]);
    const { pending } = await gateway.json(["nodes", "pending"]);
    check(!pending.some((request) => request.requestId === requestId), "it still pends", pending);
    await fails(invoke("rejected"));
  });
  if (!rejected) return;
  await test("official CLI: nodes rename", async () => {
    await again({});
    const { requestId } = await pendingSurface(gateway, "theta");
    await gateway.json(["nodes", "approve", requestId]);
    await succeeds(home, ["nodes", "rename", "--node", "theta", "--name", "iota"]);
    const { nodes } = await operator.call("node.list");
    check(nodes[0].displayName === "iota", "another name", nodes);
    await runsUname(gateway, "/run @iota uname -a");
  });
  await official(home, ["devices", "rename", "--device", deviceId, "--name", "the iota"]);
  const takes = async (what, field) => {
    const close = await closed(node, async () => {
      const { out } = await succeeds(home, ["devices", what, "--device", deviceId, "--role", "node", "--json"]);
      const answer = JSON.parse(out);
      check(answer.deviceId === deviceId && answer.role === "node" && answer[field] > 0, "another answer", Object.keys(answer));
      check(answer.token === undefined, "it shows the token of another device");
    });
    check(close.code === 4001, "another close", close);
  };
  await test("official CLI: devices rotate", async () => {
    await takes("rotate", "rotatedAtMs");
    await node.stop();
    const old = new OldNode(gateway, "theta", {}, identity);
    const { details } = await old.refusal();
    check(details.code === "AUTH_DEVICE_TOKEN_MISMATCH", "another refusal", details);
    await old.stop();
    // The row "A token rotated for another device" of docs/COMPATIBILITY.md.
    check((await again(secret)).auth.deviceToken === undefined, "it was given the withheld token");
  });
  await test("official CLI: devices revoke", async () => {
    await takes("revoke", "revokedAtMs");
    check((await again(secret)).auth.deviceToken, "no new token");
    await again({});
  });
  await test("official CLI: nodes remove", async () => {
    await succeeds(home, ["nodes", "remove", "--node", deviceId]);
    await fails(invoke("removed"));
  });
  await test("official CLI: devices remove", async () => {
    await succeeds(home, ["devices", "remove", deviceId]);
    const { paired } = await gateway.json(["devices", "list"]);
    check(paired.length === 0, "it is still paired", paired);
    await node.stop();
    const removed = new OldNode(gateway, "theta", secret, identity);
    const { details } = await removed.refusal();
    check(details.code === "PAIRING_REQUIRED", "another refusal", details);
    await removed.stop();
  });
}

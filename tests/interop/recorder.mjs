// A recording proxy: forwards bytes untouched between a client and a Gateway, and notes each WebSocket frame.
//
// A recording is a list of `{dir, t_ms, conn, …}`: `frame` (the parsed JSON of a text message), or `op` with what it
// concerns (`http`, `text`, `binary`, `ping`, `pong`, `close`, `eof`). `dir` is "c2g" or "g2c".

import net from "node:net";

const MASK_BIT = 0x80;
const OP = { continuation: 0, text: 1, binary: 2, close: 8, ping: 9, pong: 10 };
const HEAD_END = Buffer.from("\r\n\r\n");

/** Reads one direction of one connection: an HTTP head, then frames once the connection was upgraded. */
class Reader {
  constructor(connection, dir, note) {
    Object.assign(this, { connection, dir, note, buffer: Buffer.alloc(0), message: [], opcode: 0 });
  }

  feed(bytes) {
    this.buffer = Buffer.concat([this.buffer, bytes]);
    while (this.connection.upgraded ? this.frame() : this.head());
  }

  head() {
    const end = this.buffer.indexOf(HEAD_END);
    if (end < 0) return false;
    const [start, ...headers] = this.buffer.subarray(0, end).toString("latin1").split("\r\n");
    this.note({ op: "http", start, headers });
    if (this.dir === "g2c" && start.split(" ")[1] === "101") this.connection.upgraded = true;
    // A body is of no interest here, and no client sends a frame before it has seen the 101.
    this.buffer = this.connection.upgraded ? this.buffer.subarray(end + HEAD_END.length) : Buffer.alloc(0);
    return this.buffer.length > 0;
  }

  frame() {
    const { buffer } = this;
    if (buffer.length < 2) return false;
    let at = 2;
    let length = buffer[1] & 0x7f;
    if (length === 126) {
      if (buffer.length < 4) return false;
      length = buffer.readUInt16BE(2);
      at = 4;
    } else if (length === 127) {
      if (buffer.length < 10) return false;
      length = Number(buffer.readBigUInt64BE(2));
      at = 10;
    }
    const masked = (buffer[1] & MASK_BIT) !== 0;
    const start = masked ? at + 4 : at;
    if (buffer.length < start + length) return false;
    const payload = Buffer.from(buffer.subarray(start, start + length));
    if (masked) {
      const key = buffer.subarray(at, at + 4);
      for (let i = 0; i < payload.length; i += 1) payload[i] ^= key[i & 3];
    }
    this.buffer = buffer.subarray(start + length);
    if (buffer[0] & 0x70) this.note({ op: "reserved-bits", bits: (buffer[0] >> 4) & 7 });
    this.take(buffer[0] & 0x0f, (buffer[0] & 0x80) !== 0, payload);
    return true;
  }

  take(opcode, final, payload) {
    if (opcode === OP.ping) return this.note({ op: "ping", bytes: payload.length });
    if (opcode === OP.pong) return this.note({ op: "pong", bytes: payload.length });
    if (opcode === OP.close) {
      const code = payload.length >= 2 ? payload.readUInt16BE(0) : null;
      return this.note({ op: "close", code, reason: payload.subarray(2).toString() });
    }
    if (opcode !== OP.continuation) [this.opcode, this.message] = [opcode, []];
    this.message.push(payload);
    if (!final) return undefined;
    const message = Buffer.concat(this.message);
    this.message = [];
    if (this.opcode === OP.binary) return this.note({ op: "binary", bytes: message.length });
    try {
      return this.note({ frame: JSON.parse(message.toString()) });
    } catch {
      return this.note({ op: "text", text: message.toString() });
    }
  }
}

/** Listens on a free port of 127.0.0.1 and forwards to `target()`, which may change between connections. */
export class Recorder {
  static async listen(target) {
    const recorder = new Recorder();
    recorder.lines = [];
    recorder.sockets = new Set();
    recorder.connections = 0;
    recorder.started = performance.now();
    recorder.server = net.createServer((client) => recorder.forward(client, target()));
    await new Promise((resolve, reject) => {
      recorder.server.once("error", reject);
      recorder.server.listen(0, "127.0.0.1", resolve);
    });
    recorder.port = recorder.server.address().port;
    return recorder;
  }

  forward(client, port) {
    this.connections += 1;
    const conn = this.connections;
    const gateway = net.connect(port, "127.0.0.1");
    const connection = { upgraded: false };
    const pump = (from, to, dir) => {
      const note = (what) =>
        this.lines.push({ dir, t_ms: Math.round(performance.now() - this.started), conn, ...what });
      const reader = new Reader(connection, dir, note);
      this.sockets.add(from);
      from.setNoDelay(true);
      from.on("data", (bytes) => {
        reader.feed(bytes);
        to.write(bytes);
      });
      from.on("end", () => {
        note({ op: "eof" });
        to.end();
      });
      from.on("error", () => to.destroy());
      from.on("close", () => {
        this.sockets.delete(from);
        to.destroySoon();
      });
    };
    pump(client, gateway, "c2g");
    pump(gateway, client, "g2c");
  }

  /** Everything noted so far, as JSON lines. */
  text() {
    return this.lines.map((line) => `${JSON.stringify(line)}\n`).join("");
  }

  close() {
    this.server.close();
    for (const socket of this.sockets) socket.destroy();
  }
}

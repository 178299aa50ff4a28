// Sends messages by node's own WebSocket and checks that each comes back.
const messages = ['text', new Uint8Array(1 << 20).map((_, i) => i * 7), 'x'.repeat(1 << 20)];
const ws = new WebSocket(process.argv[2]);
ws.binaryType = 'arraybuffer';
let n = 0;
const fail = (why) => { console.log(why); process.exit(1); };
setTimeout(() => fail('time-out'), 20000).unref();
ws.onerror = (e) => fail(`error ${e.message ?? e.error}`);
ws.onopen = () => ws.send(messages[0]);
ws.onmessage = ({ data }) => {
  const sent = messages[n++];
  const same = typeof sent === 'string' ? data === sent : Buffer.from(data).equals(Buffer.from(sent));
  if (!same) fail(`message ${n} differs`);
  if (n < messages.length) ws.send(messages[n]);
  else ws.close(1000);
};
ws.onclose = ({ code }) => (code === 1000 ? console.log(`echoed ${n}`) : fail(`closed with ${code}`));

// A client on node's http module that does one exchange per line of its standard input, through a proxy by CONNECT or directly, and
// prints what it saw as one line of JSON. Strings hold one byte per character.
import http from 'node:http';
import net from 'node:net';
import tls from 'node:tls';
import fs from 'node:fs';
import readline from 'node:readline';

const roots = {};

function socket(x) {
  const [host, port] = (x.proxy || x.addr).split(':');
  const conn = net.connect({ host, port });
  if (!x.proxy) return Promise.resolve(conn);
  return new Promise((resolve, reject) => {
    conn.on('error', reject);
    conn.write(`CONNECT ${x.host}:443 HTTP/1.1\r\nHost: ${x.host}:443\r\n\r\n`);
    let head = '';
    conn.on('data', function read(part) {
      head += part.toString('latin1');
      if (!head.endsWith('\r\n\r\n')) return;
      conn.off('data', read);
      conn.off('error', reject);
      if (head.startsWith('HTTP/1.1 200')) resolve(conn);
      else reject(new Error(head));
    });
  });
}

async function connect(x) {
  const ca = (roots[x.roots] ??= fs.readFileSync(x.roots));
  const conn = tls.connect({ socket: await socket(x), servername: x.host, ca, ALPNProtocols: ['http/1.1'] });
  return new Promise((resolve, reject) => {
    conn.on('secureConnect', () => resolve(conn));
    conn.on('error', reject);
  });
}

const pairs = (raw) => raw.reduce((all, s, i) => (i % 2 ? (all.at(-1).push(s), all) : [...all, [s]]), []);

function exchange(x, agent) {
  return new Promise((resolve) => {
    const seen = { interim: [], error: '' };
    const headers = [['Host', x.host], ...x.fields];
    const has = (name) => x.fields.some(([n]) => n.toLowerCase() === name);
    const sends = x.content !== '' || x.chunked;
    if (x.chunked) headers.push(['Transfer-Encoding', 'chunked']);
    else if (sends) headers.push(['Content-Length', String(x.content.length)]);
    if (x.trailer.length) headers.push(['Trailer', x.trailer.map(([n]) => n).join(', ')]);
    if (!has('connection')) headers.push(['Connection', 'keep-alive']);
    const req = http.request({ agent, host: x.host, port: 443, method: x.method, path: x.path, headers: headers.flat(), setHost: false });
    const timer = setTimeout(() => req.destroy(new Error('time-out')), 18000);
    const end = () => { clearTimeout(timer); resolve(seen); };
    const send = () => {
      if (x.trailer.length) req.addTrailers(x.trailer);
      req.end(sends ? Buffer.from(x.content, 'latin1') : undefined);
    };
    // node's parser of answers does not tell the fields of a 100.
    req.on('continue', () => { seen.interim.push([100, []]); if (x.expects) send(); });
    req.on('information', (i) => seen.interim.push([i.statusCode, pairs(i.rawHeaders)]));
    req.on('response', (res) => {
      seen.code = res.statusCode;
      seen.reason = res.statusMessage;
      seen.fields = pairs(res.rawHeaders);
      const parts = [];
      const done = (error) => {
        seen.error ||= error;
        seen.content = Buffer.concat(parts).toString('latin1');
        seen.trailers = pairs(res.rawTrailers);
        if (x.early) req.destroy();
        end();
      };
      res.on('data', (p) => parts.push(p));
      res.on('end', () => done(''));
      res.on('error', () => done('broken'));
    });
    req.on('error', (e) => { seen.message = String(e); if (seen.code === undefined) seen.error = 'broken'; end(); });
    if (x.expects) req.flushHeaders();
    else send();
  });
}

async function run(x) {
  let opened = 0;
  const conns = [];
  const agent = new http.Agent({ keepAlive: true, maxSockets: 1 });
  agent.createConnection = (_, cb) => {
    opened++;
    connect(x).then((c) => { conns.push(c); cb(null, c); }, cb);
  };
  const all = [];
  for (let i = 0; i < x.times; i++) {
    opened = 0;
    const seen = await exchange(x, agent);
    seen.opened = opened;
    all.push(seen);
    await new Promise(setImmediate); // the agent takes the connection back
  }
  for (const c of conns) c.destroy();
  agent.destroy();
  return all;
}

for await (const line of readline.createInterface({ input: process.stdin })) {
  process.stdout.write(JSON.stringify(await run(JSON.parse(line))) + '\n');
}

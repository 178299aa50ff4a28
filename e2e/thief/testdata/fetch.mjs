// One GET, for node, deno and bun: fetch.mjs HOST PORT PATH. Exit code 0 where the server was accepted. bun and deno
// go through the proxy of HTTPS_PROXY, which knows where HOST is; node 20 reads no such variable and is told.
import https from "node:https";
import process from "node:process";

const [host, port, path] = process.argv.slice(2);

function fail(error) {
  console.error(String(error), String(error.cause ?? ""));
  process.exit(1);
}

if (globalThis.Bun || globalThis.Deno) {
  const answer = await fetch(`https://${host}:${port}${path}`).catch(fail);
  console.log(answer.status);
} else {
  const options = { host: "127.0.0.1", port, path, agent: false, headers: { host } };
  if (host !== options.host) options.servername = host;
  https.get(options, (answer) => console.log(answer.resume().statusCode)).on("error", fail);
}

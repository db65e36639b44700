// Milliseconds per signature and per reading of a key (RSA-2048) of the module's own signer in V8:
//
//   cargo build --package refund-filter --example signatures --target wasm32-unknown-unknown --profile wasm
//   node examples/signatures.mjs target/wasm32-unknown-unknown/wasm/examples/signatures.wasm
import { readFileSync } from "node:fs";

const bytes = readFileSync(process.argv[2]);
const { instance } = await WebAssembly.instantiate(bytes, {});
const { read, sign } = instance.exports;

// The golden key's signature over this text, by openssl, begins so.
const EXPECTED = 0x0c2f08f9;

const once = (call, times) => {
  const begin = performance.now();
  for (let i = 0; i < times; i++) call();
  return (performance.now() - begin) / times;
};
const check = (call, expected) => () => {
  if (call() >>> 0 !== expected) throw new Error("a wrong result");
};

for (const [name, call, times] of [["reading", check(read, 1), 20], ["signature", check(sign, EXPECTED), 50]]) {
  // Compiled by the optimising tier first, as in an Envoy that has been up for a second.
  once(call, times * 4);
  const rounds = Array.from({ length: 15 }, () => once(call, times)).sort((a, b) => a - b);
  console.log(`${name}: ${rounds[7].toFixed(3)} ms (median of 15 rounds, best ${rounds[0].toFixed(3)})`);
}

// The playground in Chromium, opened as a file: `node --test tests/playground/run.mjs`. BROWSER names a folder with the packages,
// PAGE the page. With UPDATE_DOCS the page's picture is taken anew.
import assert from "node:assert/strict";
import { readdirSync, readFileSync, statSync } from "node:fs";
import { createRequire } from "node:module";
import { dirname, join } from "node:path";
import { after, before, test } from "node:test";
import { fileURLToPath, pathToFileURL } from "node:url";

const ROOT = join(dirname(fileURLToPath(import.meta.url)), "../..");
const PAGE = process.env.PAGE ?? join(ROOT, "dist/docs/playground/index.html");
const packages = createRequire(join(process.env.BROWSER, "node_modules/"));
const { default: packed } = await import(packages.resolve("@sparticuz/chromium"));
const { chromium } = packages("playwright-core");
const axe = packages.resolve("axe-core");

let browser;
const asked = [];

before(async () => {
  browser = await chromium.launch({ executablePath: process.env.CHROMIUM ?? (await packed.executablePath()), args: ["--no-sandbox"] });
});
after(() => browser.close());

async function opened(fragment = "", options = {}) {
  const page = await browser.newPage({ viewport: { width: 1200, height: 900 }, ...options });
  page.on("request", (request) => asked.push(request.url()));
  page.on("pageerror", (error) => assert.fail(error));
  await page.goto(pathToFileURL(PAGE) + fragment);
  await page.waitForFunction(() => document.querySelector("#answer").textContent);
  return page;
}

const provider = (page) => page.getByLabel("Provider");
const request = (page) => page.getByRole("region", { name: "Provider request" });
const answer = (page) => page.getByRole("region", { name: "Answer" });

async function shows(region, ...texts) {
  for (const text of texts) await region.getByText(text).first().waitFor({ timeout: 20_000 });
}

async function hasNot(region, text) {
  assert.doesNotMatch(await region.innerText(), text);
}

test("each provider is sent its own request, and the answer is one for all", async () => {
  const page = await opened();
  const all = [
    ["bog", /POST https:\/\/api\.bog\.ge\/payments\/v1\/payment\/refund\/1004922/, /^\{"amount":10\.5\}$/m, /idempotency-key: [0-9a-f-]{36}/, "pending"],
    ["moyasar", /POST https:\/\/pg\.moyasar\.com\/v1\/orders\/[0-9a-f-]{36}\/refund/, /^\{"amount":1050,/m, /authorization: Bearer /, "succeeded"],
    ["begateway", /POST https:\/\/api\.begateway\.com\/beyag\/transactions\/refunds/, /"parent_uid":"1-310b0da80b"/, /authorization: Basic /, "succeeded"],
    ["bbmsl", /POST https:\/\/payapi\.prod\.bbmsl\.com\/hosted-checkout\/refund/, /"orderId\\":4922,\\"amount\\":10\.5\}"/, /"signature":"[A-Za-z0-9+/]{342}=="/, "succeeded"],
  ];
  for (const [name, ...texts] of all) {
    const status = texts.pop();
    await provider(page).selectOption(name);
    await shows(request(page), ...texts);
    await shows(answer(page), `"status": "${status}"`, `"provider": "${name}"`);
  }
  await page.close();
});

test("every golden file opens, and says in the browser what it says in Envoy", async () => {
  const page = await opened();
  const providers = join(ROOT, "tests/providers");
  const files = readdirSync(providers, { recursive: true }).filter((path) => /golden.*\.json$/.test(path));
  assert.ok(files.length >= 550);
  const names = files.map((path) => path.replace("/golden/", "/").replace(".json", ""));
  const seen = await page.evaluate(async (names) => {
    const seen = [];
    for (const name of names) {
      await openExample(name);
      const [request, answer] = ["request", "answer"].map((id) => document.getElementById(id).innerText);
      seen.push({ request, answer });
    }
    return seen;
  }, names);
  for (const [index, path] of files.entries()) {
    const { provider_request: sent, answer: told } = JSON.parse(readFileSync(join(providers, path), "utf8"));
    const { request, answer } = seen[index];
    if (sent) {
      assert.ok(request.startsWith(`${sent.method} ${sent.scheme}://${sent.authority}${sent.path}\n`), `${path}: ${request}`);
      assert.ok(!sent.body || request.endsWith(`\n\n${sent.body}`), `${path}: ${request}`);
      for (const [name, value] of Object.entries(sent.headers)) assert.ok(request.includes(`\n${name}: ${value}\n`), `${path}: ${name}`);
    } else {
      assert.equal(request, "Nothing is sent.", path);
    }
    if (!told) continue;
    assert.ok(answer.startsWith(`HTTP ${told.status}\n`), `${path}: ${answer}`);
    const body = JSON.parse(answer.slice(answer.indexOf("\n\n")));
    const isProblem = told.status >= 300;
    assert.deepEqual(comparable(body, isProblem), comparable(told.body, isProblem), path);
  }
  await page.close();
});

// A problem without its words for people, which the files leave out.
function comparable(body, isProblem) {
  if (!isProblem) return body;
  const { title, detail, errors, ...rest } = body;
  return { ...rest, errors: errors?.map(({ pointer }) => pointer).sort() };
}

test("an invalid call sends nothing, and every fault of it is told", async () => {
  const page = await opened();
  await page.getByLabel("Call").fill('{"provider": "bog", "payment": {}, "amount": {"value": "01", "currency": "GEL"}}');
  await shows(answer(page), "invalid-request", "/payment", "/amount/value", "Not refunded.");
  await shows(request(page), "Nothing is sent.");
  await page.getByLabel("Call").fill("{");
  await shows(answer(page), "malformed-json", "send it with the same key");
  await page.close();
});

test("an unknown says so, and a look-up clears it", async () => {
  const page = await opened("#provider=bbmsl");
  await page.getByLabel("Choose").selectOption("timeout");
  await shows(answer(page), '"code": "provider-timeout"', '"retry": "look_up"', "Money may have moved.", "Never use a new key");
  await answer(page).getByRole("button", { name: "Look it up" }).click();
  await shows(request(page), "/hosted-checkout/query");
  await shows(answer(page), '"status": "succeeded"', "Refunded.");
  await page.close();
});

test("a refused call after an unknown one stays unknown", async () => {
  const page = await opened("#provider=moyasar");
  await page.getByLabel("Reply").fill("timeout");
  await shows(answer(page), '"retry": "same_key"');
  await answer(page).getByRole("button", { name: "Make the refund call again" }).click();
  await shows(answer(page), '"status": "succeeded"');
  await page.getByLabel("Reply").fill("HTTP 401");
  await shows(answer(page), '"code": "provider-auth-failed"', "Money may have moved.");
  await page.close();
});

test("replies are written as a body, with a status and headers, or as what happens instead", async () => {
  const page = await opened("#provider=bog");
  const replies = [
    ['{"key": "no such word"}', "provider-reply-unreadable"],
    ["HTTP/1.1 429 Too Many Requests\nRetry-After: 30\n\n{}", "retry-after: 30"],
    ["503", "provider-error"],
    ["connection refused", "provider-unreachable"],
    ["reply cut", "provider-error"],
    ["token refused", "provider-auth-failed"],
  ];
  for (const [reply, told] of replies) {
    await page.getByLabel("Reply").fill(reply);
    await shows(answer(page), told);
  }
  await page.getByLabel("Reply").fill("");
  await shows(answer(page), "It waits for the reply.");
  await page.close();
});

test("a link holds the state", async () => {
  const page = await opened("#provider=begateway");
  await page.getByLabel("Call").fill('{"provider": "begateway", "payment": {"id": "1-ü&#"}, "amount": "full"}');
  await page.getByLabel("Idempotency-Key").fill("k 1");
  await page.getByLabel("Reply").fill("HTTP 500\n\nOops & more");
  await shows(answer(page), "idempotency-key-invalid");
  const link = page.url();
  const other = await opened(new URL(link).hash);
  for (const label of ["Provider", "Call", "Reply", "Idempotency-Key"]) {
    assert.equal(await other.getByLabel(label).inputValue(), await page.getByLabel(label).inputValue(), label);
  }
  assert.equal(await answer(other).innerText(), await answer(page).innerText());
  // A link in an open page counts as well.
  await other.evaluate(() => { location.hash = "#provider=bbmsl"; });
  await shows(request(other), "payapi.prod.bbmsl.com");
  await Promise.all([page.close(), other.close()]);
});

test("a call that names another provider is that one's, and a choice keeps a call that was written", async () => {
  const page = await opened();
  await page.getByLabel("Call").fill('{"provider": "moyasar", "payment": {"id": "p-1"}, "amount": {"value": "1.00", "currency": "SAR"}}');
  await shows(request(page), "/v1/orders/p-1/refund");
  assert.equal(await provider(page).inputValue(), "moyasar");
  await provider(page).selectOption("begateway");
  await shows(request(page), '"parent_uid":"p-1"');
  await page.close();
});

test("by keyboard alone", async () => {
  const page = await opened();
  await page.keyboard.press("Tab");
  assert.equal(await page.evaluate(() => document.activeElement.id), "provider");
  await page.keyboard.press("ArrowDown");
  await shows(request(page), "pg.moyasar.com");
  const stops = [];
  for (let stop = 0; stop < 10; stop += 1) {
    await page.keyboard.press("Tab");
    stops.push(await page.evaluate(() => document.activeElement.id || document.activeElement.tagName));
  }
  assert.deepEqual(stops.slice(0, 8), ["example", "key", "share", "call", "request", "choice", "reply", "answer"]);
  await page.getByLabel("Reply").focus();
  await page.keyboard.press("Control+A");
  await page.keyboard.type("timeout");
  await shows(answer(page), "provider-timeout");
  await page.keyboard.press("Tab");
  await page.keyboard.press("Tab");
  await page.keyboard.press("Enter");
  await shows(answer(page), '"status": "succeeded"');
  await page.close();
});

for (const colorScheme of ["light", "dark"]) {
  for (const width of [1200, 360]) {
    test(`it can be read: ${colorScheme}, ${width} pixels wide`, async () => {
      const page = await opened("#provider=bbmsl&choice=timeout", { colorScheme, viewport: { width, height: 800 } });
      await shows(answer(page), "Money may have moved.");
      const paper = await page.evaluate(() => getComputedStyle(document.body).backgroundColor.match(/\d+/g).map(Number));
      assert.equal(paper[0] < 128, colorScheme === "dark");
      assert.equal(await page.evaluate(() => document.documentElement.scrollWidth), width);
      await page.addScriptTag({ path: axe });
      const { violations } = await page.evaluate(() => window.axe.run());
      assert.deepEqual(violations.map(({ id, nodes }) => [id, nodes.map(({ html }) => html)]), []);
      if (process.env.UPDATE_DOCS && width === 1200 && colorScheme === "light") {
        await page.setViewportSize({ width: 1000, height: 700 });
        await page.screenshot({ fullPage: true, path: join(ROOT, "docs/pictures/playground.png") });
      }
      await page.close();
    });
  }
}

test("nothing is asked for but the page's own files, and they are small", () => {
  const folder = dirname(PAGE);
  const own = pathToFileURL(folder).href;
  assert.deepEqual(asked.filter((url) => !url.startsWith(own)), []);
  const size = readdirSync(folder).map((file) => statSync(join(folder, file)).size).reduce((sum, size) => sum + size);
  assert.ok(size < 1_000_000, `${size} bytes`);
});

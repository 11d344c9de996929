// A seller's client: opens an account, sells, shows the receipt; errors by their reasons.
//
//   node client.js DESCRIPTORS HOST:PORT ACCOUNT SITE TARIFF POLICY
//
// Prints a JSON object. README.md says where DESCRIPTORS comes from.
"use strict";

const { randomUUID } = require("node:crypto");
const { readFileSync } = require("node:fs");
const { setTimeout: pause } = require("node:timers/promises");
const grpc = require("@grpc/grpc-js");
const loader = require("@grpc/proto-loader");

const CALLER = "node-example"; // request ids are unique to it
const TIMEOUT_MS = 10_000;
const TRIES_MAX = 5;
const UNKNOWN_OUTCOME = [grpc.status.UNAVAILABLE, grpc.status.DEADLINE_EXCEEDED];

const [descriptors, address, account, site, tariff, policy] = process.argv.slice(2);
const api = loader.loadFileDescriptorSetFromBuffer(readFileSync(descriptors), {
  keepCase: true,
  longs: String, // int64: a JavaScript number would round large amounts
  defaults: true,
  oneofs: true,
});
const { VendingService } = grpc.loadPackageDefinition(api).wattvend.vending.v1;
const vending = new VendingService(address, grpc.credentials.createInsecure());

/** What the service refused: `reason` is one of docs/errors.md, `field` what is at fault. */
class Refused extends Error {
  constructor(error) {
    super(error.details);
    this.code = error.code;
    const [sent] = error.metadata.get("grpc-status-details-bin");
    const details = sent ? api["google.rpc.Status"].deserialize(sent).details : [];
    const packed = details.find((detail) => detail.type_url.endsWith("/google.rpc.ErrorInfo"));
    const info = packed ? api["google.rpc.ErrorInfo"].deserialize(packed.value) : {};
    this.reason = info.reason ?? "";
    // A map, as a descriptor set has it: its entries.
    this.field = info.metadata?.find((entry) => entry.key === "field")?.value ?? "";
  }
}

function callOnce(method, request) {
  const metadata = new grpc.Metadata();
  metadata.set("wattvend-caller", CALLER);
  const deadline = Date.now() + TIMEOUT_MS;
  return new Promise((resolve, reject) => {
    vending[method](request, metadata, { deadline }, (error, answer) =>
      error ? reject(new Refused(error)) : resolve(answer),
    );
  });
}

/** Call; where nobody knows what became of it, the same request again: it is done once. */
async function call(method, request) {
  for (let tried = 1; ; tried += 1) {
    try {
      return await callOnce(method, request);
    } catch (refused) {
      if (tried === TRIES_MAX || !UNKNOWN_OUTCOME.includes(refused.code)) throw refused;
      await pause(200 * 2 ** tried);
    }
  }
}

async function reasonOf(method, request) {
  try {
    await call(method, request);
  } catch (refused) {
    return { reason: refused.reason, field: refused.field };
  }
  throw new Error(`${method} was not refused`);
}

async function main() {
  const opened = await call("OpenAccount", {
    request_id: randomUUID(),
    account_id: account,
    site: `sites/${site}`,
    commodity: "electricity",
    tariff: `tariffs/${tariff}`,
    policy: `policies/${policy}`,
  });
  const sale = {
    request_id: randomUUID(), // a new one for each sale; kept for its repeats
    name: opened.name,
    amount_minor: "10000",
    method: "qr",
  };
  const sold = await call("Sell", sale);
  const again = await call("Sell", sale); // as after a lost answer: the first one's
  const receipt = await call("GetReceipt", { name: sold.sale.receipt });
  const refused = [
    await reasonOf("Sell", { ...sale, amount_minor: "20000" }),
    await reasonOf("Sell", { ...sale, request_id: randomUUID(), amount_minor: "0" }),
    await reasonOf("Sell", { ...sale, request_id: randomUUID(), name: "accounts/nobody" }),
    await reasonOf("Sell", { ...sale, request_id: randomUUID(), name: account }),
  ];
  const after = await call("GetAccount", { name: opened.name });
  console.log(
    JSON.stringify({
      account: opened.name,
      receipt: receipt.name,
      number: receipt.number,
      amount_minor: receipt.sale.amount_minor,
      credited_nano: after.credited_nano,
      is_sold_once: again.sale.receipt === sold.sale.receipt,
      refused,
    }),
  );
}

main()
  .catch((error) => {
    console.error(error.reason ? `${error.reason}: ${error.message}` : error);
    process.exitCode = 1;
  })
  .finally(() => vending.close());

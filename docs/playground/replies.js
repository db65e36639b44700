// What the providers say, by their own pages: for a refund, and for a look-up. `x` is the request: its payment, key, currency,
// and the amount as this provider counts it.
"use strict";

const json = (value) => JSON.stringify(value, null, 2);

const REPLIES = {
  bog: {
    refund: {
      "accepted": (x) => json({key: "request_received", message: "Refund request received", action_id: "5b666901-eb05-4f83-abeb-8311e175f337"}),
      "already refunded": () => "HTTP 409\n\n" + json({error: "already_refunded", message: "The order was refunded before."}),
      "rejected": () => "HTTP 400\n\n" + json({error: "invalid_amount", message: "The amount is larger than what is left."}),
    },
    lookUp: {
      "completed": (x) => order(x, "refunded_partially", [{action_id: x.id ?? "5b666901-eb05-4f83-abeb-8311e175f337", action: "partial_refund", status: "completed", amount: x.major}]),
      "rejected": (x) => order(x, "completed", [{action_id: x.id ?? "5b666901-eb05-4f83-abeb-8311e175f337", action: "partial_refund", status: "rejected", amount: x.major, code: "116", code_description: "Insufficient funds"}]),
      "nothing shows": (x) => order(x, "completed", []),
    },
  },
  moyasar: {
    refund: {
      "approved": (x) => paid(x, "approved"),
      "initiated": (x) => paid(x, "initiated"),
      "failed": (x) => paid(x, "failed"),
      "still processing": () => "HTTP 400\n\n" + json({message: "Initial request is still processing."}),
      "another amount": (x) => paid({...x, amount: x.amount + 1}, "approved"),
    },
    lookUp: {
      "approved": (x) => paid(x, "approved"),
      "failed": (x) => paid(x, "failed"),
      "nothing shows": (x) => json({id: x.payment, currency: x.currency, amount: 262346, transactions: []}),
    },
  },
  begateway: {
    refund: {
      "successful": (x) => json({transaction: transaction(x, "successful")}),
      "pending": (x) => json({transaction: transaction(x, "pending")}),
      "failed": (x) => json({transaction: {...transaction(x, "failed"), code: "F.0105", message: "Declined"}}),
      "already refunded": () => "HTTP 422\n\n" + json({response: {code: "F.0108", message: "The transaction was refunded before."}}),
      "a field is wrong": () => "HTTP 422\n\n" + json({response: {message: "amount must be greater than 0", errors: {amount: ["must be greater than 0"]}}}),
      "another amount": (x) => json({transaction: transaction({...x, amount: x.amount + 1}, "successful")}),
    },
    lookUp: {
      "successful": (x) => json({transactions: [{...transaction(x, "successful"), tracking_id: x.key}]}),
      "failed": (x) => json({transactions: [{...transaction(x, "failed"), tracking_id: x.key}]}),
      "nothing shows": () => json({transactions: []}),
    },
  },
  bbmsl: {
    refund: {
      "success": (x) => refunded(x, "0000", "SUCCESS"),
      "declined": (x) => refunded(x, "2002", "DECLINED"),
      "already refunded": () => json({responseCode: "9005", message: "The order was refunded before"}),
      "another amount": (x) => refunded({...x, amount: x.amount + 1}, "0000", "SUCCESS"),
    },
    lookUp: {
      "refunded": (x) => json({responseCode: "0000", message: "Success", order: ordered(x, "REFUNDED", Number((1000 - x.amount).toFixed(3)))}),
      "nothing refunded": (x) => json({responseCode: "0000", message: "Success", order: ordered(x, "SUCCESS", 1000)}),
    },
  },
};

function order(x, status, actions) {
  return json({order_id: x.payment, order_status: {key: status}, purchase_units: {currency_code: x.currency}, actions});
}

function paid(x, status) {
  const transactions = [
    {id: "0191f5a7-44ab-7fbb-ab3c-1e1a98a5166e", status: "approved", type: "capture", amount: 262346},
    {id: x.key, status, type: "refund", amount: x.amount, message: status.toUpperCase(), response_code: status === "failed" ? "51" : "00"},
  ];
  return json({id: x.payment, currency: x.currency, amount: 262346, transactions});
}

function transaction(x, status) {
  return {uid: "2-310b0da80b", parent_uid: x.payment, type: "refund", status, message: "…", amount: x.amount, currency: x.currency};
}

function ordered(x, status, netAmount) {
  return {id: Number(x.payment), currency: x.currency, amount: 1000, netAmount, status};
}

function refunded(x, responseCode, status) {
  const netAmount = status === "SUCCESS" ? Number((1000 - x.amount).toFixed(3)) : 1000;
  const order = ordered(x, status === "SUCCESS" ? "REFUNDED" : "SUCCESS", netAmount);
  return json({responseCode, order, transaction: {id: 3758, type: "REFUND", amount: x.amount, currency: x.currency, status}});
}

// At every provider alike.
const STATUSES = {
  "401": "HTTP 401", "404": "HTTP 404", "429, wait 30 s": "HTTP 429\nretry-after: 30",
  "500": "HTTP 500", "503": "HTTP 503", "no JSON": "<html>Sorry</html>",
};
const FAULTS = {
  "timeout": "timeout", "connection refused": "connection_refused", "connection timeout": "connection_timeout",
  "connection reset": "reset", "reply cut": "cut", "token refused": "token_refused", "token endpoint down": "token_unreachable",
};

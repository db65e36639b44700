"""Makes refunds and look-ups with the client that was generated from openapi.yaml: `client.py URL`, with the client, as the
package `refunds`, in PYTHONPATH. What is asserted are the client's own types."""

import sys
import uuid

from refunds import Client
from refunds.api.refunds import look_up_refund, preview_refund, refund
from refunds.models import (
    Money,
    Payment,
    Preview,
    Problem,
    ProblemCode,
    ProblemOutcome,
    ProblemRetry,
    Refund,
    RefundCall,
    RefundStatus,
)


def call(provider: str, payment: str, currency: str) -> RefundCall:
    return RefundCall(
        provider=provider,
        payment=Payment(id=payment),
        amount=Money(value="10.50", currency=currency),
        reason="returned goods",
    )


def is_refund(answer, provider: str, payment: str, amount) -> Refund:
    assert isinstance(answer, Refund), answer
    assert answer.provider == provider, answer
    assert answer.payment == Payment(id=payment), answer
    assert answer.amount == amount, answer
    assert isinstance(answer.id, str) and answer.id, answer
    return answer


def made_and_looked_up(client, provider, payment, currency, status, found) -> None:
    key = str(uuid.uuid4())
    body = call(provider, payment, currency)
    response = refund.sync_detailed(client=client, body=body, idempotency_key=key)
    assert response.status_code == (202 if status is RefundStatus.PENDING else 200), response
    amount = Money(value="10.50", currency=currency)
    made = is_refund(response.parsed, provider, payment, amount)
    assert made.status is status, made

    again = refund.sync_detailed(client=client, body=body, idempotency_key=key)
    assert again.parsed == made, (made, again.parsed)

    response = look_up_refund.sync_detailed(
        client=client, provider=provider, payment_id=payment, id=made.id, key=key
    )
    assert response.status_code == 200, response
    # BOG tells no amount before the end: the gateway remembers it under the key.
    looked_up = is_refund(response.parsed, provider, payment, amount)
    assert looked_up.status is found, looked_up
    assert looked_up.id == made.id, (made, looked_up)


def main() -> None:
    client = Client(base_url=sys.argv[1])
    # BOG is still at work on it, and the client must not take that for an end.
    made_and_looked_up(
        client, "bog", "order-1", "GEL", RefundStatus.PENDING, RefundStatus.PENDING
    )
    made_and_looked_up(
        client,
        "moyasar",
        "00000000-0000-4000-8000-000000000001",
        "SAR",
        RefundStatus.SUCCEEDED,
        RefundStatus.SUCCEEDED,
    )

    shown = preview_refund.sync(
        client=client, body=call("bog", "order-2", "GEL"), idempotency_key="shown"
    )
    assert isinstance(shown, Preview), shown
    assert shown.body == '{"amount":10.5}', shown

    refused = refund.sync(
        client=client, body=call("no-such", "1", "GEL"), idempotency_key="refused"
    )
    assert isinstance(refused, Problem), refused
    assert refused.code is ProblemCode.INVALID_REQUEST, refused
    assert refused.outcome is ProblemOutcome.NOT_REFUNDED, refused
    assert refused.retry is ProblemRetry.CORRECTED, refused
    assert [fault.pointer for fault in refused.errors] == ["/provider"], refused


main()

"""HL7 v2 over real sockets: acknowledged means kept."""

from __future__ import annotations

import asyncio
import ssl
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import hl7

from fedtwin_client.ingest import mllp
from fedtwin_client.ingest.hl7_listener import listen
from tests.client.ingest.bedside import Authority, Kept, make_device, make_gateway

MESSAGE = (
    "MSH|^~\\&|MONITOR|ICU|NODE|SITE|20261122110000+0000||ORU^R01^ORU_R01|{}|P|2.5.1\rPID|1||p1^^^HOSP^MR\r"
    "OBX|1|NM|8867-4^Heart rate^LN||{}|/min^^UCUM|||||F|||20261122105900+0000\r"
)


def codes(answers: list[bytes]) -> list[str]:
    return [str(hl7.parse(answer.decode()).segment("MSA")[1]) for answer in answers]


def test_an_answer_means_that_the_message_is_kept(tmp_path: Path) -> None:
    authority = Authority(tmp_path / "tls")
    server, feed, stranger = (authority.certify(name) for name in ("localhost", "feed", "stranger"))
    kept = Kept()
    gateway = make_gateway(tmp_path, kept, make_device("feed", feed.der))
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=str(authority.certificate))
    context.verify_mode = ssl.CERT_REQUIRED
    context.load_cert_chain(server.certificate, server.private_key)

    async def talk() -> None:
        with ThreadPoolExecutor(1) as executor:
            listener = await listen(gateway, executor, host="localhost", port=0, tls=context)
            port = listener.sockets[0].getsockname()[1]

            async def say(who: object, *messages: str) -> list[str]:
                client = ssl.create_default_context(cafile=str(authority.certificate))
                assert who in (feed, stranger)
                chosen = feed if who is feed else stranger
                client.load_cert_chain(chosen.certificate, chosen.private_key)
                sent = [message.encode() for message in messages]
                return codes(await mllp.send(sent, host="localhost", port=port, tls=client))

            async with listener:
                numbered = [MESSAGE.format(number, 60 + number) for number in range(20)]
                assert await say(feed, *numbered) == ["AA"] * 20
                assert kept.values() == [60.0 + number for number in range(20)]
                assert await say(feed, numbered[3]) == ["AA"]  # its answer was lost: safe already, not kept twice
                assert await say(stranger, numbered[0]) == ["AR"]
                assert await say(feed, "nonsense") == ["AR"]
                kept.broken = True
                assert await say(feed, MESSAGE.format("x", 90)) == ["AE"]
                kept.broken = False
                assert await say(feed, MESSAGE.format("x", 90)) == ["AA"]
                assert len(kept.values()) == 21

    asyncio.run(asyncio.wait_for(talk(), 30))
    totals = gateway.totals
    assert totals.received == totals.accepted + totals.set_aside + totals.duplicate + totals.refused == 21 + 1 + 3

"""schemathesis against the memory server's own OpenAPI page: every check it has, drawn with a seed.

Each endpoint gets requests that fit the page and requests that do not, in the phases examples,
coverage and fuzzing. Nothing may be answered otherwise than the page says: no undescribed status
or shape, no error of ours, nothing bad accepted, nothing good refused, no token ignored.
"""

import schemathesis
from fake_chat import FakeChat
from hypothesis import HealthCheck, settings
from schemathesis.config import SchemathesisConfig

from memalpha_kit.server.app import create_app
from memalpha_kit.settings import ServerSettings

TOKEN = "correct-horse-battery"

CONFIG = {
    "seed": 20250911,
    "base-url": "http://localhost",
    "generation": {"deterministic": True, "max-examples": 10, "database": "none"},
    # What JSON Schema cannot say: as many lists as memories, no blank question (422).
    "checks": {"positive_data_acceptance": {"expected-statuses": ["2xx", "422"]}},
}


def say(asked):
    """What the server's two kinds of prompts ask for."""
    if "VALID" in asked.messages[0]["content"]:
        return '```json\n{"VALID": true, "ISSUES": [], "EXPLANATION": ""}\n```'
    return "Nora"


def page(token="", **options):
    app = create_app(ServerSettings(**options), FakeChat(say), token)
    config = SchemathesisConfig.from_dict(CONFIG)
    return schemathesis.openapi.from_asgi("/openapi.json", app, config=config)


fixed, released, locked = page(), page(compat="release"), page(token=TOKEN)
few = settings(suppress_health_check=list(HealthCheck), deadline=None)


@fixed.parametrize()
@few
def test_the_server_keeps_to_its_page(case):
    case.call_and_validate()


@released.parametrize()
@few
def test_the_server_as_released_keeps_to_its_page(case):
    case.call_and_validate()


@locked.parametrize()
@few
def test_the_server_with_a_token_keeps_to_its_page(case):
    case.call_and_validate(headers={"Authorization": f"Bearer {TOKEN}"})

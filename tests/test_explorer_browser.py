"""The explorer's page in a headless Chromium: clicked through, and held against the episode."""

from __future__ import annotations

import os
import random
import signal
import socket
import subprocess
import sys
import urllib.request
from dataclasses import replace
from itertools import chain
from pathlib import Path

import nbformat
import pytest
from browser import Browser, needs_browser, wait
from nbconvert import HTMLExporter
from random_episodes import random_case

from memalpha_kit.data.instances import save_instances
from memalpha_kit.explorer import Recording, html_page, show, view
from memalpha_kit.lab import miniature, world
from memalpha_kit.method.advantages import episode_advantages
from memalpha_kit.method.blame import touches
from memalpha_kit.method.calls import render_calls
from memalpha_kit.method.episode import ask, play, write
from memalpha_kit.method.memory import INSERT, UPDATE
from memalpha_kit.method.rewards import step_rewards
from memalpha_kit.method.saved import save_episodes
from memalpha_kit.method.writers import ScriptedReplies
from memalpha_kit.records import QA, Answer, Rewards, ToolCall, make_instance
from memalpha_kit.settings import (
    AdvantageConfig,
    MemoryConfig,
    ProtocolConfig,
    RewardConfig,
    load_profile,
)

pytestmark = needs_browser
PROFILE = load_profile("laptop")
READY = "document.body.dataset.took !== undefined"


@pytest.fixture(scope="module")
def browser():
    with Browser() as one:
        yield one


@pytest.fixture(scope="module")
def played():
    """Two instances of the miniature, four rollouts each by a rule, with rewards."""
    instances = miniature.held_out(PROFILE)["test_4x"][:2]
    habits = world.imperfect(PROFILE.warm_start)
    teacher = miniature.teacher("teacher", habits, PROFILE.memory)
    return instances, play(instances, teacher, miniature.environment(PROFILE), 4, seed=1)


@pytest.fixture
def page(browser, tmp_path):
    """Opens a page of some value."""

    def opened(shown):
        file = tmp_path / "page.html"
        file.write_text(html_page(shown), encoding="utf-8")
        browser.requests.clear()
        browser.errors.clear()
        browser.open(file.as_uri(), READY)
        return browser

    return opened


def miniature_view(played):
    instances, made = played
    recording = Recording("teacher", made.episodes, rewards=made.rewards)
    return view([recording], instances, None, PROFILE.reward, PROFILE.advantage)


def shown_memory(browser):
    """{entry: text} of the memory after the chunk, as it is seen."""
    card = "[data-card=memory] .entry:not([data-kind=removed])"
    ids = browser.value(f"[...document.querySelectorAll('{card}')].map((n) => n.dataset.id)")
    every = "n.querySelector('ins .text') ?? n.querySelector('.text')"
    code = f"[...document.querySelectorAll('{card}')].map((n) => ({every}).textContent)"
    return dict(zip(ids, browser.value(code), strict=True))


def test_clicking_through_the_chunks_shows_the_episode(page, played):
    instances, made = played
    browser, episode, instance = page(miniature_view(played)), made.episodes[0], instances[0]
    for place, step in enumerate(episode.steps):
        if place:
            browser.click("#on")
        assert browser.value("document.body.dataset.chunk") == str(place)
        assert browser.texts("[data-card=chunk] .text") == [instance.chunks[place]]
        assert browser.texts("[data-card=reply] .text") == [step.completion.text or "(empty)"]
        marks = browser.value(
            "[...document.querySelectorAll('.call')].map((node) => node.dataset.status)"
        )
        assert marks == [call.status for call in step.calls]
        assert shown_memory(browser) == {entry.id: entry.text for _, entry in step.memory.entries()}
    assert browser.value("document.querySelectorAll('.question').length") == len(episode.answers)
    scores = [float(text.split()[1]) for text in browser.texts("[data-is=score]")]
    assert scores == [answer.score for answer in episode.answers]
    assert browser.texts("[data-is=gold]") == [" | ".join(q.answers) for q in instance.questions]
    assert browser.errors == [] and len(browser.requests) == 1


def test_keys_the_slider_and_the_chart_go_to_a_chunk(page, played):
    browser = page(miniature_view(played))
    here = "document.body.dataset.chunk"
    for key, chunk in (("ArrowRight", "1"), ("End", "15"), ("ArrowLeft", "14"), ("Home", "0")):
        browser.press(key)
        assert browser.value(here) == chunk
    browser.choose("#chunk", 7)
    assert browser.value(here) == "7"
    browser.press("Home")
    browser.click(".chart")
    assert browser.value(here) in ("7", "8")  # its middle
    browser.press("]")
    assert browser.value("document.querySelector('.column').dataset.episode") == "1"
    browser.click(".cell", 16 * 2 + 3)  # rollout 2, chunk 3
    assert browser.value("document.querySelector('.column').dataset.episode") == "2"
    assert browser.value(here) == "3"


def test_two_rollouts_of_an_instance_stand_side_by_side(page, played):
    browser, (_, made) = page(miniature_view(played)), played
    browser.choose("#beside", 2)
    browser.press("End")
    assert browser.texts("[data-card=chunk] .text") == [played[0][0].chunks[-1]]  # once for both
    replies = browser.texts("[data-card=reply] .text")
    assert replies == [made.episodes[n].steps[-1].completion.text or "(empty)" for n in (0, 2)]
    browser.choose("#instance", made.episodes[4].instance)
    assert browser.value("document.querySelectorAll('.column').length") == 1


def test_an_entry_shows_the_calls_that_made_it(page, played):
    browser, episode = page(miniature_view(played)), played[1].episodes[0]
    browser.press("End")
    found, ids = touches(episode), [e.id for _, e in episode.memory.entries()]
    blamed = {entry: [t for t in found if t.entry == entry] for entry in ids}
    changed = [entry for entry in ids if len(blamed[entry]) > 1]
    for entry in (changed[0], ids[0]):
        browser.click(f"[data-card=memory] .entry[data-id='{entry}']")
        items = f"[data-card=memory] .entry[data-id='{entry}'] .history li"
        code = f'[...document.querySelectorAll("{items}")].map((n) => ({{...n.dataset}}))'
        expected = [
            {"step": str(t.step), "call": str(t.call), "what": t.kind} for t in blamed[entry]
        ]
        assert browser.value(code) == expected
    browser.click(f"[data-card=memory] .entry[data-id='{changed[0]}'] .history .link")
    assert browser.value("document.body.dataset.chunk") == str(blamed[changed[0]][0].step)


RECORDED = (
    *(PROFILE.reward.compression, PROFILE.reward.content),
    *(PROFILE.advantage.grouping, PROFILE.advantage.scale),
)
GROUPINGS = ("instance", "chunk", "rollout", "leave_one_out")
WEIGHTS = ((0.05, 0.2, "std"), (0.8, 0.0, "none"), (0.0, 1.0, "std"))
SETTINGS = [(b, c, grouping, scale) for grouping in GROUPINGS for b, c, scale in WEIGHTS]
CELLS = "[...document.querySelectorAll('.cell')]"


def python_says(played, setting):
    """R and A of the first instance's rollouts by the package, step after step."""
    beta, gamma, grouping, scale = setting
    mine = played[1].episodes[:4]
    config = replace(PROFILE.reward, compression=beta, content=gamma)
    steps = [step_rewards(played[1].rewards[episode.id], config) for episode in mine]
    values = episode_advantages(steps, [""] * 4, AdvantageConfig(grouping=grouping, scale=scale))
    return [*chain(*steps)], [*chain(*values)]


def test_what_if_recomputes_rewards_and_advantages_as_the_package_does(page, played):
    browser = page(miniature_view(played))
    _, recorded = python_says(played, RECORDED)
    for setting in SETTINGS:
        for name, value in zip(("beta", "gamma", "grouping", "scale"), setting, strict=True):
            browser.choose(f"#{name}", value)
        steps, values = python_says(played, setting)
        for letter, expected in (("r", steps), ("a", values)):
            found = browser.value(f"{CELLS}.map((n) => Number(n.dataset.{letter}))")
            assert found == pytest.approx(expected, abs=1e-9)
        flips = [sign(now) != sign(was) for now, was in zip(values, recorded, strict=True)]
        assert browser.value(f"{CELLS}.map((n) => n.classList.contains('flip'))") == flips
    browser.click("#reset")
    assert browser.value("document.querySelectorAll('.flip').length") == 0


def random_rewards(rng, n):
    """Rewards of an episode of n steps; a few are missing and a few are equal."""

    def some():
        return rng.choice((None, 0.0, 0.5, 1.0, *(rng.random() for _ in range(12))))

    rows = [tuple(some() for _ in range(n)) for _ in range(3)]
    return Rewards(some(), some(), rows[0], rows[1], {"mine": rows[2]})


@pytest.mark.parametrize("single", ["zero", "raw", "release"])
def test_what_if_is_right_for_missing_rewards_and_every_setting(page, single):
    rng, episode = random.Random(single), random_case(3)[0]
    reward = RewardConfig(accuracy_threshold=0.4, others={"mine": 0.3})
    runs = {}
    for name in map(str, range(12)):
        rollouts = range(rng.randint(1, 4))
        group = [replace(episode, id=f"{episode.instance}#{n}", rollout=n) for n in rollouts]
        parts = {e.id: random_rewards(rng, len(e.steps)) for e in group}
        runs[name] = Recording(name, group, rewards=parts)
    advantage = AdvantageConfig(single=single)
    browser = page(view(list(runs.values()), (), None, reward, advantage))
    number = "(text) => text === undefined ? null : Number(text)"
    for name, run in runs.items():
        browser.choose("#run", name)
        for grouping in GROUPINGS:
            browser.choose("#grouping", grouping)
            steps = [step_rewards(run.rewards[e.id], reward) for e in run.episodes]
            setting = replace(advantage, grouping=grouping)
            values = chain(*episode_advantages(steps, [""] * len(steps), setting))
            shown = browser.value(f"{CELLS}.map((n) => [n.dataset.r, n.dataset.a].map({number}))")
            for (r, a), reward_now, value in zip(shown, chain(*steps), values, strict=True):
                expected = (None, None) if reward_now is None else (reward_now, value)
                assert (r, a) == tuple(e if e is None else approx(e) for e in expected)


def approx(value):
    return pytest.approx(value, abs=1e-9)


def sign(value):
    return 0 if abs(value) < 1e-9 else 1 if value > 0 else -1


HOSTILE = (
    "<script>window.hacked = 1</script>",
    "</script><img src=x onerror='window.hacked = 2'>",
    "\x1b[31mred\x1b[0m \x00\x07\x9b",
    "\u202eevil\u202c \u2066iso\u2069 \u200bzero",
    "' onmouseover='window.hacked = 3' x='\" & &lt; \u2028",
    "x" * 1_000_000,
)


def hostile_view():
    chunk = "\n".join(HOSTILE)
    kinds = ("core", "semantic", "episodic", *["semantic"] * 3)
    calls = [
        ToolCall(UPDATE if kind == "core" else INSERT, {"memory_type": f"{kind}_memory",
                 "new_content" if kind == "core" else "content": text})
        for kind, text in zip(kinds, HOSTILE, strict=True)
    ]  # fmt: skip
    bad = ToolCall("<b>tool</b>", {"<i>name</i>": HOSTILE[1], "memory_type": HOSTILE[0]})
    reply = render_calls([*calls, bad], "qwen")
    questions = [QA(f"q{n}", text, (text,)) for n, text in enumerate(HOSTILE)]
    instance = make_instance("squad", [chunk], questions)
    config = MemoryConfig(core_limit_tokens=10_000)
    (episode,) = write([instance], ScriptedReplies([reply], HOSTILE[0]), config, ProtocolConfig())

    class Echo:
        name = "echo"

        def read(self, questions, done=None):
            return [Answer(q.id, q.text, retrieved=("1", "<b>")) for q in questions]

    asked = ask([episode], [instance], Echo())
    return view([Recording(HOSTILE[1], asked)], [instance]), asked, instance


def test_hostile_text_is_shown_as_text_and_never_runs(page):
    shown, (episode,), instance = hostile_view()
    browser = page(shown)
    cut = 20_000
    (chunk,) = browser.texts("[data-card=chunk] .text")
    assert chunk.startswith(instance.chunks[0][:cut]) and "show all 1,000," in chunk
    browser.click("[data-card=chunk] .link")
    assert browser.texts("[data-card=chunk] .text") == [instance.chunks[0]]
    texts = shown_memory(browser)
    for _, entry in episode.memory.entries():
        assert texts[entry.id].startswith(entry.text[:cut])
    assert texts["core"] == episode.memory.core
    for number in range(len(HOSTILE)):
        browser.click(".question > summary", number)
    assert browser.value("document.querySelectorAll('main img, main script, main b b').length") == 0
    assert browser.value("window.hacked") is None
    assert browser.errors == [] and len(browser.requests) == 1
    signs = browser.value("[...new Set([...document.querySelectorAll('.sign')]"
                          ".map((node) => node.dataset.name))]")  # fmt: skip
    assert {"\u241b", "\u2400", "U+202E", "U+2066", "U+200B"} <= set(signs)


def test_the_policy_of_the_page_stops_a_script_that_would_get_in(page, played):
    browser = page(miniature_view(played))
    browser.value(
        "document.body.insertAdjacentHTML('beforeend',"
        " '<img src=x onerror=\"window.hacked = 1\">');"
        "{ const s = document.createElement('script'); s.textContent = 'window.hacked = 2';"
        " document.body.append(s); }"
    )
    assert browser.value("window.hacked") is None
    assert any("Content Security Policy" in error for error in browser.errors)


def test_an_exported_notebook_shows_the_same_page(browser, played, tmp_path):
    instances, made = played
    shown = show(made.episodes, instances, rewards=made.rewards)
    data = {"text/html": shown._repr_html_(), "text/plain": repr(shown)}
    output = nbformat.v4.new_output("execute_result", data, execution_count=1)
    cell = nbformat.v4.new_code_cell("show(episodes)", outputs=[output], execution_count=1)
    notebook = nbformat.v4.new_notebook(cells=[cell])
    text, _ = HTMLExporter().from_notebook_node(notebook)
    (tmp_path / "exported.html").write_text(text, encoding="utf-8")
    browser.send("Network.setBlockedURLs", urls=["https://*"])  # MathJax and the like
    browser.open((tmp_path / "exported.html").as_uri(), "document.querySelector('iframe')")
    assert_frame_can_be_clicked(browser, made.episodes[0], instances[0])


def assert_frame_can_be_clicked(browser, episode, instance):
    """Clicks to the next chunk in the first frame and reads what is shown there."""
    context = browser.frame(READY)
    assert browser.value("document.body.dataset.chunk", context) == "0"
    browser.click_in_frame("#on", context)
    assert browser.value("document.body.dataset.chunk", context) == "1"
    text = browser.value("document.querySelector('[data-card=chunk] .text').textContent", context)
    assert text == instance.chunks[1]
    entries = browser.value(
        "document.querySelectorAll('[data-card=memory] .entry:not([data-kind=removed])').length",
        context,
    )
    assert entries == len(episode.steps[1].memory.entries())


# ---- JupyterLab --------------------------------------------------------------------------------

CODE = """\
from pathlib import Path
from memalpha_kit import explorer
from memalpha_kit.data.instances import load_instances
from memalpha_kit.method.saved import load_episodes
explorer.show(load_episodes(Path("e.jsonl")), load_instances(Path("data.parquet")))
"""
QUIET = (
    *("--no-browser", "--ip=127.0.0.1", "--allow-root", "--IdentityProvider.token=look"),
    "--LabApp.check_for_updates_class=jupyterlab.handlers.announcements.NeverCheckForUpdate",
    "--LabApp.news_url=",
)


@pytest.fixture
def lab(tmp_path):
    """The address of a JupyterLab of this environment, on a folder with nobody's settings."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    folders = {f"JUPYTER_{n}_DIR": str(tmp_path / n) for n in ("CONFIG", "DATA", "RUNTIME")}
    folders |= {"PYTHONPATH": str(Path(__file__).parent.parent), "IPYTHONDIR": str(tmp_path / "i")}
    server = subprocess.Popen(
        [sys.executable, "-m", "jupyterlab", *QUIET, f"--ServerApp.port={port}"],
        cwd=tmp_path,
        env={**os.environ, **folders},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    address = f"http://127.0.0.1:{port}"

    def answers():
        assert server.poll() is None, "JupyterLab ended"
        try:
            return urllib.request.urlopen(f"{address}/api?token=look", timeout=5)
        except OSError:
            return None

    try:
        wait(answers, "JupyterLab to answer")
        yield address
    finally:
        os.killpg(server.pid, signal.SIGTERM)
        try:
            server.wait(15)
        except subprocess.TimeoutExpired:
            os.killpg(server.pid, signal.SIGKILL)


def test_in_jupyterlab_a_cell_shows_the_page_and_it_can_be_clicked(lab, played, tmp_path):
    instances, made = played
    save_episodes(tmp_path / "e.jsonl", made.episodes[:4])
    save_instances(tmp_path / "data.parquet", instances)
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(CODE)])
    notebook.metadata["kernelspec"] = {"name": "python3", "display_name": "Python 3"}
    nbformat.write(notebook, tmp_path / "look.ipynb")
    with Browser() as browser:
        named = "document.querySelector('.jp-Toolbar-kernelName')?.textContent.includes('Python')"
        idle = "document.querySelector('.jp-Notebook-ExecutionIndicator[data-status=idle]')"
        browser.open(f"{lab}/doc/tree/look.ipynb?token=look", f"{named} && {idle}")
        browser.click("[data-command='notebook:run-cell-and-select-next']")
        wait(lambda: browser.value("!!document.querySelector('.jp-OutputArea iframe')"), "output")
        assert_frame_can_be_clicked(browser, made.episodes[0], instances[0])

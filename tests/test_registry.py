"""Variants by name: what is registered is found, a wrong name gets the closest one."""

from __future__ import annotations

import sys

import pytest

from memalpha_kit.errors import InputError
from memalpha_kit.registry import Registry, fresh_processes, import_extensions


@pytest.fixture
def rules():
    table = Registry("rule")
    table.add("first", min)
    table.register("last")(max)
    return table


def test_names_are_found_in_the_order_of_registration_and_stand_for_one_thing(rules):
    assert rules.names() == ("first", "last")
    assert rules["last"] is max and rules.add("first", min) is min
    assert "first" in rules and "middle" not in rules
    with pytest.raises(InputError, match="rule: expected a known name, found 'frist'.*'first'"):
        rules["frist"]
    with pytest.raises(InputError, match="rule 'first': expected a new name"):
        rules.add("first", max)


def test_what_is_defined_again_in_a_notebook_takes_its_own_place(rules):
    for number in (1, 2):

        @rules.register("mine")
        def mine(number=number):
            return number

    assert rules["mine"]() == 2 and rules.names() == ("first", "last", "mine")
    rules.add("short", lambda: 1)
    with pytest.raises(InputError, match="rule 'short': expected a new name"):
        rules.add("short", lambda: 2)


def test_a_user_s_module_registers_by_being_imported(rules, tmp_path, monkeypatch):
    (tmp_path / "my_rules.py").write_text("import sys\nsys.my_rules_ran = True\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(sys, "my_rules_ran", False, raising=False)
    import_extensions(["my_rules"])
    assert sys.my_rules_ran
    with pytest.raises(InputError, match="extension 'no_such_rules'"):
        import_extensions(["no_such_rules"])
    with fresh_processes(1) as pool:  # as `--workers` starts them
        assert pool.submit(eval, "'my_rules' in __import__('sys').modules").result()


@pytest.mark.parametrize("name", ["", ".rules", "rules.py", "folder/rules"])
def test_what_names_no_module_is_one_line(name):
    with pytest.raises(InputError, match="expected a module as after `import`"):
        import_extensions([name])


def test_an_error_inside_a_user_s_module_keeps_its_traceback(tmp_path, monkeypatch):
    (tmp_path / "my_broken_rules.py").write_text("import not_installed_anywhere\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ModuleNotFoundError, match="not_installed_anywhere"):
        import_extensions(["my_broken_rules"])

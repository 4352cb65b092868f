"""Command lines that behave alike: config files, dotted overrides, one-line errors.

Every command of the project builds a :class:`Parser` and ends with :func:`run`::

    def main(argv: list[str] | None = None) -> None:
        arguments = build_parser().parse_args(argv)
        ...

    if __name__ == "__main__":
        run(main)

jsonargparse gives ``--config FILE``, dotted overrides such as ``--recipe.optimizer.lr 0.1`` and
``--print_config``. This module adds what it leaves out: a mistake is one line that names the
field, the value found, the values possible and the mend, and exits with status 2.
"""

from __future__ import annotations

import argparse
import difflib
import errno
import functools
import itertools
import os
import re
import signal
import sys
import types
import typing
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any, NoReturn

import jsonargparse
import yaml

from nml.errors import UserError
from nml.files import NoPlace, is_full
from nml.front import ignore_namesakes, spelled
from nml.untrusted import Untrusted, check_yaml, printable
from nml.urls import redacted, take_secret_of_word, take_secrets

# Before a command imports what may be hidden: this module is the first that each of them imports.
ignore_namesakes()
USER_ERROR_STATUS = 2
_CONFIG = "--config"
# How jsonargparse begins what a reader of YAML says of one.
_UNREAD_CONFIG = "Problems parsing config: "
_READ_YAML = jsonargparse.get_loader("yaml")
_NEGATIVE = re.compile(r"-\d+|-\d*\.\d+")
# How progress bars go back to the start of their line, and to the line above.
_PROGRESS = re.compile("(\r|\x1b\\[A)")

_TYPE_MESSAGE = re.compile(
    r'(?:Parser key|Key) "(?P<key>[^"]+)"(?P<element>[^:]*):\s*(?P<rest>.*)', re.DOTALL
)
# Words of a command line, or a key of a configuration file.
_UNKNOWN = re.compile(r"unrecognized arguments: (?P<words>.+)|Option '(?P<key>.+)' is not accepted", re.S)
_LITERAL = re.compile(r"Literal\[(?P<values>[^\]]*)\]")
_CLASS = re.compile(r"<class '(?:\w+\.)*(?P<name>\w+)'>")


def _read_bounded(text: str) -> Any:
    """Read a config file, or one value of a command line, as jsonargparse does, but nothing too large."""
    check_yaml(text)
    return _READ_YAML(text)


jsonargparse.set_loader("yaml", _read_bounded, (yaml.YAMLError, ValueError))


class Parser(jsonargparse.ArgumentParser):
    """An argument parser with ``--config``, ``--print_config`` and one-line errors.

    Args:
        prog: The command as a user types it, for example ``python -m shards.write``.
        description: What the command does, first sentence first; shown by ``--help``.
        epilog: Examples, shown verbatim at the end of ``--help``.
        config: Whether to add ``--config``; a parser that only holds subcommands leaves it to them.
        check: Is given what ``--print_config`` is to print, and refuses it as the command itself would.
    """

    def __init__(
        self,
        prog: str,
        description: str,
        *,
        epilog: str = "",
        config: bool = True,
        check: Callable[[Any], object] | None = None,
    ) -> None:
        self._path: Any = ""
        self._check = check
        super().__init__(
            prog=spelled(prog),
            description=description,
            epilog=epilog or None,
            formatter_class=_HelpFormatter,
            # An abbreviation that works today breaks the day a longer flag joins.
            allow_abbrev=False,
        )
        if config:
            self.add_argument(_CONFIG, action="config", help="YAML file with any of the options below")

    def parse_args(  # type: ignore[override]
        self, args: Sequence[str] | None = None, namespace: Any = None, **options: Any
    ) -> Any:
        """Return the values of a command line; secrets in URLs are taken out (:mod:`nml.urls`).

        What the command line says wins over ``--config``, wherever that stands.
        """
        words = [take_secret_of_word(word) for word in (sys.argv[1:] if args is None else args)]
        if _CONFIG in self.flags():
            words = _config_first(words)
        several = [flag for action in self._actions if action.nargs == "+" for flag in action.option_strings]
        words = _gathered(words, several)
        return _without_secrets(super().parse_args(words, namespace, **options))

    def parse_path(self, path: Any, *more: Any, **options: Any) -> Any:
        """Return the values of a config file, whose name an error begins with."""
        self._path = path
        return super().parse_path(path, *more, **options)

    def dump(self, cfg: Any, *more: Any, **options: Any) -> str:
        """Return values as YAML; what came out of a config file may hold a secret, too."""
        if self._check is not None and hasattr(self, "print_config"):
            self._check(cfg)
        text: str = super().dump(_without_secrets(cfg), *more, **options)
        return text

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:  # noqa: ARG002 - jsonargparse's signature
        """Print one line that names the field, the value and the mend, and exit with status 2."""
        message = message.replace(_UNREAD_CONFIG, f"{_CONFIG} {self._path}: ")
        fail(_one_line(message, self.flags()) + f"; see: {self.prog} --help")

    def _check_value_key(self, action: argparse.Action, value: Any, *rest: Any, **more: Any) -> Any:
        if value is None and action.default not in (None, argparse.SUPPRESS) and not _takes_none(action):
            # A key without a value is not the option left out.
            kind = getattr(getattr(action, "_typehint", action.type), "__name__", "value")
            raise TypeError(f'Parser key "{action.dest}": Expected a {kind}. Got value: None')
        # In a file, the one value of an option that takes several need not be a list.
        several = action.nargs == "+" and value is not None and not isinstance(value, list)
        value = [value] if several else value
        switch = action.nargs == 0 and isinstance(action.const, bool)
        if switch and isinstance(value, str | int | float | list | dict) and not isinstance(value, bool):
            # A switch, of which any word would count as "on", `"no"` as well.
            raise TypeError(f'Parser key "{action.dest}": Expected a true, false. Got value: {value}')
        if action.type is str or getattr(action, "_typehint", None) is str:
            # Nor need a number be quoted there where a command line would take it as text.
            value = [_as_text(one) for one in value] if isinstance(value, list) else _as_text(value)
        return super()._check_value_key(action, value, *rest, **more)

    def flags(self) -> list[str]:
        """Return every flag that may be typed."""
        return [flag for action in self._actions for flag in action.option_strings]


def _takes_none(action: argparse.Action) -> bool:
    hint = getattr(action, "_typehint", None)
    return hint is Any or type(None) in typing.get_args(hint)


def _as_text(value: Any) -> Any:
    return str(value) if isinstance(value, int | float) and not isinstance(value, bool) else value


def _config_first(words: list[str]) -> list[str]:
    """Return a command line with its config files before everything else."""
    end = words.index("--") if "--" in words else len(words)
    configs: list[str] = []
    others: list[str] = []
    rest = iter(words[:end])
    for word in rest:
        if word == _CONFIG:
            configs += [word, *itertools.islice(rest, 1)]
        else:
            (configs if word.startswith(f"{_CONFIG}=") else others).append(word)
    return [*configs, *others, *words[end:]]


def _gathered(words: list[str], several: Collection[str]) -> list[str]:
    """Return a command line in which each flag of ``several`` stands once, with the values of all its places.

    argparse keeps those of the last place alone.
    """
    end = words.index("--") if "--" in words else len(words)
    others: list[str] = []
    found: dict[str, list[list[str]]] = {}
    place = others
    for word in words[:end]:
        flag, equals, value = word.partition("=")
        if flag in several:
            place = [value] if equals else []
            found.setdefault(flag, []).append(place)
            # What follows "--flag=value" is no value of it.
            place = others if equals else place
        else:
            place = others if _begins_option(word) else place
            place.append(word)
    # A flag without a value is left where it is, to be told.
    if all(len(places) == 1 for places in found.values()) or not all(map(all, found.values())):
        return words
    # At the end, where no other word follows that would be taken for one more value.
    for flag, places in found.items():
        others += [flag, *itertools.chain.from_iterable(places)]
    return [*others, *words[end:]]


def _begins_option(word: str) -> bool:
    return word.startswith("-") and word != "-" and " " not in word and not _NEGATIVE.fullmatch(word)


def flag_of(name: str) -> str:
    """Return the flag of an option: ``--run-dir`` of ``run_dir``."""
    return "--" + name.replace("_", "-")


def add_options(parser: Parser, options: type, *, leave_out: Collection[str] = ()) -> None:
    """Add the fields of a dataclass to a parser; the metadata of a field is its ``help``.

    What is False unless it is said is a switch, and of a list there may be several.

    Args:
        parser: Where to.
        options: The dataclass.
        leave_out: Names of fields that no user sets.
    """
    hints = typing.get_type_hints(options)
    for option in fields(options):
        if option.name in leave_out:
            continue
        kind: Any = hints[option.name]
        more: dict[str, Any] = {}
        default = option.default if option.default_factory is MISSING else option.default_factory()
        if kind is bool and not default:
            parser.add_argument(flag_of(option.name), action="store_true", help=option.metadata["help"])
            continue
        # Of "or nothing", and of text or a path, a command line knows the first.
        kind = typing.get_args(kind)[0] if isinstance(kind, types.UnionType) else kind
        if typing.get_origin(kind) in (list, tuple):
            kind, more = typing.get_args(kind)[0], {"nargs": "+"}
            default = [*default] if isinstance(default, tuple) else default
        parser.add_argument(
            flag_of(option.name), type=kind, default=default, help=option.metadata["help"], **more
        )


def given_options(namespace: Any, options: type, *, leave_out: Collection[str] = ()) -> dict[str, Any]:
    """Return what a parser of :func:`add_options` found, as arguments of the dataclass."""
    hints = typing.get_type_hints(options)
    return {
        option.name: tuple(found) if typing.get_origin(hints[option.name]) is tuple else found
        for option in fields(options)
        if option.name not in leave_out
        for found in [namespace[option.name]]
    }


def refuse_unused(parser: Parser, arguments: Any, used_by: Mapping[str, Collection[str]]) -> None:
    """Refuse what another command of the same parser takes, but not the one that is asked for.

    Args:
        parser: Its argument ``command`` names the command.
        arguments: What it found.
        used_by: For an argument, the commands that it has an effect on.

    Raises:
        UserError: Names the first argument without effect.
    """
    for name, commands in used_by.items():
        value = arguments[name]
        if arguments.command not in commands and value != parser.get_default(name):
            told = flag_of(name) if flag_of(name) in parser.flags() else name
            shown = value if isinstance(value, list) else [] if value is True else [value]
            raise UserError(
                " ".join(map(str, [told, *shown])) + f": has no effect on {arguments.command}",
                possible=f"with {', '.join(commands)}",
                mend="leave it out",
            )


class _HelpFormatter(jsonargparse.DefaultHelpFormatter):
    """Keep the line breaks of descriptions and examples, and what is said once from being said twice."""

    def format_help(self) -> str:
        """Return the help with ``--print_config[=flags]`` as it is typed, with no backspace."""
        return str(super().format_help()).replace(" \b", "")

    def _fill_text(self, text: str, width: int, indent: str) -> str:  # noqa: ARG002 - argparse's signature
        return "\n".join(indent + line for line in text.strip().splitlines())

    def _get_type_str(self, action: argparse.Action) -> str | None:
        # Choices stand before the help already; the type of some is a function of jsonargparse.
        named: str | None = super()._get_type_str(action)
        return None if action.choices or (named or "").startswith("Literal[") else named

    def add_usage(
        self,
        usage: str | None,
        actions: Iterable[argparse.Action],
        groups: Iterable[Any],
        prefix: str | None = None,
    ) -> None:
        """Leave dotted options to the list below: dozens of them would hide what the command does."""
        short = [action for action in actions if not any("." in flag for flag in action.option_strings)]
        super().add_usage(usage, short, groups, prefix)


def _without_secrets(values: Any) -> Any:
    for name, value in values.items():
        if isinstance(value, str):
            values[name] = take_secrets(value)
        elif isinstance(value, list):
            values[name] = [take_secrets(one) if isinstance(one, str) else one for one in value]
    return values


def _one_line(message: str, flags: list[str]) -> str:
    """Rewrite a message of jsonargparse as field, value found, values possible."""
    unknown = _UNKNOWN.search(message)
    if unknown:
        found = (unknown["words"] or unknown["key"]).split()
        near = _near(found[0].partition("=")[0], flags) if found else []
        hint = f"; did you mean {' or '.join(near)}?" if near else ""
        return f"unknown option {' '.join(found)}{hint}"
    match = _TYPE_MESSAGE.search(message)
    if not match:
        return " ".join(message.split())
    # Keys have underscores where the flag that a user typed may have dashes.
    dashed = "--" + match["key"].replace("_", "-")
    flag = dashed if dashed in flags else "--" + match["key"]
    rest = " ".join(match["rest"].split())
    rest = rest.removesuffix(".") if rest.count(".") == 1 else rest
    expected, separator, value = rest.partition("Got value:")
    if not separator:
        return f"{flag}: {rest}"
    expected = expected.replace("Expected a ", "").replace("Expected an ", "").strip().rstrip(".")
    literal = _LITERAL.search(expected)
    possible = literal["values"].replace("'", "") if literal else _CLASS.sub(r"\g<name>", expected)
    # Of `--recipe NAME`, where it is a table of a config file and `--recipes` takes names.
    hint = f"; did you mean {flag}s?" if possible.startswith("dict") and flag + "s" in flags else ""
    return f"{flag} {value.strip()}: not a possible value; possible: {possible}{hint}"


def _near(word: str, flags: list[str]) -> list[str]:
    """Return the flags that a word may have meant: those that end as it does, or the one most like it.

    Dashes in front are left out of account: they alone make a short word like any other.
    """
    names = {_bare(flag): flag for flag in flags}
    last = _bare(word).rpartition(".")[2]
    same = [flag for name, flag in names.items() if name.rpartition(".")[2] == last]
    if same and _bare(word) not in names:
        return same[:3]
    close = difflib.get_close_matches(_bare(word), names, n=1, cutoff=0.6)
    if not close:
        ends = {name.rpartition(".")[2]: name for name in names}
        close = [ends[end] for end in difflib.get_close_matches(last, ends, n=1, cutoff=0.8)]
    return [names[name] for name in close]


def _bare(flag: str) -> str:
    return flag.lstrip("-").replace("-", "_")


def fail(message: str) -> NoReturn:
    """Print ``error: message`` as one line on standard error and exit with status 2."""
    print("error: " + printable(" ".join(redacted(str(message)).split())), file=sys.stderr, flush=True)
    sys.exit(USER_ERROR_STATUS)


def run(main: Callable[[], Any]) -> NoReturn:
    """Call ``main`` and turn a user's mistake into one line, an interrupt into silence.

    Exit statuses: what ``main`` returns (None is 0), 2 for a user's mistake or a disk without room, 130
    after Ctrl-C, 141 when the reader of a pipe went away. Anything else is a bug and keeps its traceback.
    """
    _open_closed_streams()
    _guard_streams()
    try:
        # Not only for the parser: loggers keep the command line, and the launcher says it again.
        sys.argv[1:] = [take_secret_of_word(word) for word in sys.argv[1:]]
        status = main()
        sys.stdout.flush()
    except UserError as error:
        fail(str(error))
    except Untrusted as error:
        if error.path is None:
            raise
        fail(f"{error.path} does not read: {error}; restore it, or remove it")
    except KeyboardInterrupt:
        print("interrupted; run the same command again to continue", file=sys.stderr)
        sys.exit(128 + signal.SIGINT)
    except BrokenPipeError:
        # The interpreter would flush standard output once more on exit and complain again.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(128 + signal.SIGPIPE)
    except OSError as error:
        place = f"{error.filename}: " if error.filename else ""
        if is_full(error):
            fail(f"{place}{error.strerror}; make room and run the same command again")
        if place and error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
            fail(
                f"{place}{error.strerror}; name a place that you may read and write, or have it opened to you"
            )
        if isinstance(error, NoPlace) or (place and error.errno == errno.ENOTDIR):
            fail(f"{place}{error.strerror}; name another place")
        raise
    sys.exit(status if isinstance(status, int) else 0)


def _open_closed_streams() -> None:
    # Started without them (`>&-`), as by some daemons; libraries write to them all the same.
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, Path(os.devnull).open("w"))  # noqa: SIM115 - for as long as the process lives


def _guard_streams() -> None:
    """Let no name that a set or a result holds act on the terminal that it is shown on."""
    for stream in (sys.stdout, sys.stderr):
        # Under this name print and the progress bars find it.
        stream.write = functools.partial(_write_guarded, stream.write)  # type: ignore[method-assign]


def _write_guarded(write: Callable[[str], int], text: str) -> int:
    pieces = enumerate(_PROGRESS.split(text))
    return write("".join(piece if number % 2 else printable(piece) for number, piece in pieces))


def is_interactive() -> bool:
    """Whether progress bars make sense: standard error is a terminal."""
    return sys.stderr.isatty()


def log(text: str) -> None:
    """Print a line about long work on standard error where no progress bar shows it: in a log."""
    if not is_interactive():
        print(text, file=sys.stderr, flush=True)

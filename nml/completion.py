"""``nml completion bash`` and ``nml completion zsh``: commands, their options, and files."""

from __future__ import annotations

import sys

from nml.errors import UserError
from nml.front import COMMANDS

# Options are read off a command's own help, so that they are never out of date.
_SCRIPT = """\
_nml() {{
    local line="${{COMP_WORDS[*]:1:COMP_CWORD-1}}" word="${{COMP_WORDS[COMP_CWORD]}}" name
    COMPREPLY=()
    if [ "$COMP_CWORD" -eq 1 ]; then
        COMPREPLY=($(compgen -W "{first}" -- "$word"))
        return
    fi
    case "$line" in
{cases}
    esac
    case "$word" in
        -*) COMPREPLY=($(compgen -W "$("${{COMP_WORDS[@]:0:COMP_CWORD}}" --help 2>/dev/null |
                grep -oE -- '--[a-z][A-Za-z0-9_.-]*' | sort -u)" -- "$word")) ;;
    esac
}}
complete -o default -F _nml nml
"""
_ZSH = "autoload -U +X bashcompinit && bashcompinit\n"


def main() -> int:
    """Print the script of the shell that is named."""
    shell = sys.argv[1] if len(sys.argv) == 2 else ""
    if shell in ("-h", "--help"):
        print('usage: eval "$(nml completion bash)"   in ~/.bashrc; or zsh, in ~/.zshrc')
        return 0
    if shell not in ("bash", "zsh"):
        raise UserError(
            f"nml completion {shell}".strip(), possible="bash, zsh", mend='eval "$(nml completion bash)"'
        )
    print((_ZSH if shell == "zsh" else "") + script(), end="")
    return 0


def script() -> str:
    """Return the completion for bash."""
    rooms: dict[str, list[str]] = {}
    for name in COMMANDS:
        first, *second = name.split()
        rooms.setdefault(first, []).extend(second)
    cases = "\n".join(
        f'        {first}) COMPREPLY=($(compgen -W "{" ".join(seconds)}" -- "$word")); return ;;'
        for first, seconds in rooms.items()
        if seconds
    )
    return _SCRIPT.format(first=" ".join(rooms), cases=cases)

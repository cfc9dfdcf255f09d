"""The Jinja in front of a chat template that turns what the template does not know into messages that it knows.

Tools, calls and responses take the form of Hermes, which Qwen and others use: <tools>, <tool_call>, <tool_response>.
It must render alike wherever the packaged tokenizer goes: transformers and vLLM compile templates in an immutable
sandbox, with trim_blocks and lstrip_blocks, where a list cannot be appended to.
"""

from __future__ import annotations

from dataclasses import dataclass

BEGIN = "{#- phiflow begins -#}\n"
# trim_blocks takes the line break behind the comment, and the template begins at the start of a line as before.
END = "{#- phiflow ends #}\n"

_ABOUT_TOOLS = (
    "You may call functions. Their signatures are given as JSON between <tools> and </tools>:\n<tools>",
    "\n</tools>\n\nTo call one, answer with its name and its arguments as JSON between <tool_call> and </tool_call>:\n"
    '<tool_call>\n{"name": <name>, "arguments": <object>}\n</tool_call>',
)
# A plain conversation, of which there are millions, costs a look alone.
_GUARD = """\
{%- if tools or 'tool' in (messages | map(attribute='role') | list)
    or messages | selectattr('tool_calls', 'defined') | list -%}
"""
_SYSTEM = """\
{%- set phiflow = namespace(messages=[], system=none, responses='') -%}
{%- set phiflow_rest = messages -%}
{%- if messages and messages[0].role == 'system' -%}
  {%- set phiflow.messages = [messages[0]] -%}
  {%- set phiflow.system = messages[0].content -%}
  {%- set phiflow_rest = messages[1:] -%}
{%- endif -%}
"""
_DEFAULT_SYSTEM = """\
{%- if phiflow.system is none -%}
  {%- set phiflow.system = <<system>> -%}
  {%- set phiflow.messages = [{'role': 'system', 'content': phiflow.system}] -%}
{%- endif -%}
"""
_TOOLS_AS_TEXT = """\
{%- if tools -%}
  {%- set phiflow.system = phiflow.system + '\\n\\n' if phiflow.system else '' -%}
  {%- set phiflow.system = phiflow.system + <<tools>> -%}
  {%- for tool in tools -%}
    {%- set phiflow.system = phiflow.system + '\\n' + (tool | tojson) -%}
  {%- endfor -%}
  {%- set phiflow.system = phiflow.system + <<calls>> -%}
  {%- set phiflow.messages = [{'role': 'system', 'content': phiflow.system}] -%}
{%- endif -%}
"""
_TOOLS_AS_KEY = """\
{%- if tools -%}
  {%- set phiflow.messages = [{'role': 'system', 'content': phiflow.system or '', 'tools': tools | tojson}] -%}
{%- endif -%}
"""
_NO_SYSTEM_TURN = "{%- set phiflow.messages = [] -%}\n"
_LOOP = """\
{%- for message in phiflow_rest -%}
  {%- if false -%}
<<branches>>  {%- else -%}
    {%- set phiflow.messages = phiflow.messages + [message] -%}
  {%- endif -%}
{%- endfor -%}
{%- set messages = phiflow.messages -%}
"""
_CALLS = """\
  {%- elif message.role == 'assistant' and message.tool_calls -%}
    {%- set call = namespace(text=message.content or '') -%}
    {%- for each in message.tool_calls -%}
      {%- set function = each.function or each -%}
      {%- set arguments = function.arguments if function.arguments is string else function.arguments | tojson -%}
      {%- set call.text = call.text + ('\\n' if call.text else '') + '<tool_call>\\n{"name": ' -%}
      {%- set call.text = call.text + (function.name | tojson) + ', "arguments": ' + arguments -%}
      {%- set call.text = call.text + '}\\n</tool_call>' -%}
    {%- endfor -%}
    {%- set phiflow.messages = phiflow.messages + [{'role': 'assistant', 'content': call.text}] -%}
"""
_RESPONSES = """\
  {%- elif message.role == 'tool' -%}
    {%- set phiflow.responses = phiflow.responses + ('\\n' if phiflow.responses else '') -%}
    {%- set phiflow.responses = phiflow.responses + '<tool_response>\\n' + message.content + '\\n</tool_response>' -%}
    {%- if loop.last or loop.nextitem.role != 'tool' -%}
      {%- set phiflow.messages = phiflow.messages + [{'role': 'user', 'content': phiflow.responses}] -%}
      {%- set phiflow.responses = '' -%}
    {%- endif -%}
"""
_JOINED = """\
  {%- elif message.role == 'user' and phiflow.system -%}
    {%- set joined = phiflow.system + '\\n\\n' + message.content -%}
    {%- set phiflow.messages = phiflow.messages + [{'role': 'user', 'content': joined}] -%}
    {%- set phiflow.system = none -%}
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Extension:
    """What a template must be given.

    Args:
        system_message: stands where a conversation has none; None for nothing.
        tools: "text" writes them into the system message, "key" gives them to the template as the system message's
            `tools`, as Phi-4-mini's wants; empty leaves them to it.
        calls, responses: calls become text of the assistant; responses become a user turn.
        join_system: the system message becomes the beginning of the first user turn.
    """

    system_message: str | None = None
    tools: str = ""
    calls: bool = False
    responses: bool = False
    join_system: bool = False

    def __bool__(self) -> bool:
        return bool(self.tools or self.calls or self.responses or self.join_system) or self.system_message is not None


def prelude(extension: Extension) -> str:
    """The Jinja to put in front of a template; it prints nothing."""
    parts = [BEGIN, _GUARD if extension.system_message is None and not extension.join_system else "", _SYSTEM]
    if extension.system_message is not None:
        parts.append(_DEFAULT_SYSTEM.replace("<<system>>", _literal(extension.system_message)))
    if extension.tools == "text":
        before, behind = (_literal(text) for text in _ABOUT_TOOLS)
        parts.append(_TOOLS_AS_TEXT.replace("<<tools>>", before).replace("<<calls>>", behind))
    if extension.tools == "key":
        parts.append(_TOOLS_AS_KEY)
    if extension.join_system:
        parts.append(_NO_SYSTEM_TURN)
    chosen = ((extension.calls, _CALLS), (extension.responses, _RESPONSES), (extension.join_system, _JOINED))
    parts.append(_LOOP.replace("<<branches>>", "".join(branch for wanted, branch in chosen if wanted)))
    if extension.tools:
        parts.append("{%- set tools = none -%}\n")
    if parts[1]:
        parts.append("{%- endif -%}\n")
    return "".join(parts) + END


def split(template: str) -> tuple[str, str]:
    """The prelude of an extended template, which may be empty, and the model's own template."""
    before, found, behind = template.partition(END)
    return (before + found, behind) if found and template.startswith(BEGIN) else ("", template)


def _literal(text: str) -> str:
    """The text as a string of Jinja, which reads the escapes of Python."""
    return "'" + text.encode("unicode_escape").decode("ascii").replace("'", "\\'") + "'"

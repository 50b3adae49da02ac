"""Renders conversations with Hugging Face transformers, for kbit to be compared with.

render_chat.py < REQUEST > ANSWER

REQUEST is a JSON list of {"template": text, "messages": [{"role", "content"}], "variables": {...}}; ANSWER is a list of the
texts, or {"refused": message} where the template refuses the conversation, or null where it fails. strftime_now gives the first
second of 2024.
"""

import json
import sys
from datetime import datetime

import jinja2
import transformers.utils.chat_template_utils as chat


class Then(datetime):
    @classmethod
    def now(cls, tz=None):
        return cls(2024, 1, 1, 0, 0, 0)


chat.datetime = Then


def render(request):
    try:
        texts, _ = chat.render_jinja_template(
            conversations=[request["messages"]],
            chat_template=request["template"],
            add_generation_prompt=True,
            **request["variables"],
        )
        return texts[0]
    except jinja2.exceptions.UndefinedError as error:
        print(f"UndefinedError: {error}", file=sys.stderr)
        return None
    except jinja2.exceptions.TemplateError as error:
        return {"refused": str(error)}
    except Exception as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return None


json.dump([render(request) for request in json.load(sys.stdin)], sys.stdout)

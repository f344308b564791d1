"""Short chat templates that behave like those of well-known models."""

CHATML = (
    "{% for m in messages %}<s>{{ m.role }}\n{{ m.content }}</s>\n{% endfor %}"
    "{% if add_generation_prompt %}<s>assistant\n{% endif %}"
)
NO_SYSTEM = (  # Gemma's
    "{% if messages[0].role == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
    "{% for m in messages %}{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Conversation roles must alternate user/assistant') }}{% endif %}"
    "<s>{{ m.role }}\n{{ m.content | trim }}</s>\n{% endfor %}"
    "{% if add_generation_prompt %}<s>assistant\n{% endif %}"
)
DROPS_OTHER_ROLES = (  # silently drops a system text, or the turn of a tool
    "{% for m in messages %}{% if m.role in ('user', 'assistant') %}<s>{{ m.role }}\n{{ m.content }}</s>\n{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}<s>assistant\n{% endif %}"
)
SYSTEM_ONLY = (  # Qwen's: drops unknown roles, knows the system role
    "{% for m in messages %}{% if m.role in ('system', 'user', 'assistant') %}<s>{{ m.role }}\n{{ m.content }}</s>\n"
    "{% endif %}{% endfor %}{% if add_generation_prompt %}<s>assistant\n{% endif %}"
)
TOOLS = (  # Qwen's and Llama's: arguments are objects
    "{% if tools %}<s>tools\n{% for t in tools %}{{ t | tojson }}\n{% endfor %}</s>\n{% endif %}"
    "{% for m in messages %}<s>{{ m.role }}{% if m.name %} {{ m.name }}{% endif %}{{ '\n' }}{{ m.content }}"
    "{% for c in m.tool_calls or [] %}<tool_call>"
    '{"name": "{{ c.function.name }}", "arguments": {{ c.function.arguments | tojson }}}</tool_call>'
    "{% endfor %}</s>\n{% endfor %}{% if add_generation_prompt %}<s>assistant\n{% endif %}"
)
ARGUMENTS_AS_TEXT = TOOLS.replace("c.function.arguments | tojson", "'' + c.function.arguments")  # DeepSeek's
ARGUMENTS_PRINTED = TOOLS.replace("c.function.arguments | tojson", "c.function.arguments")
FIRST_CALL_ONLY = TOOLS.replace("m.tool_calls or []", "(m.tool_calls or [])[:1]")
THINKING = (  # Qwen3's: keeps the thinking of the answer, drops that of earlier ones
    "{% set last = namespace(at=0) %}{% for m in messages %}{% if m.role == 'user' %}{% set last.at = loop.index0 %}"
    "{% endif %}{% endfor %}{% for m in messages %}<s>{{ m.role }}\n{% if m.role == 'assistant' %}"
    "{% set parts = m.content.split('</think>') %}{% if loop.index0 > last.at %}<think>\n"
    "{{ parts[0].split('<think>')[-1].strip('\n') if parts | length > 1 else '' }}"
    "\n</think>\n\n{% endif %}{{ parts[-1].lstrip('\n') }}{% else %}{{ m.content }}{% endif %}</s>\n{% endfor %}"
    "{% if add_generation_prompt %}<s>assistant\n"
    "{% if enable_thinking is defined and not enable_thinking %}<think>\n\n</think>\n\n{% endif %}{% endif %}"
)
THINKING_CUT = (  # DeepSeek-R1's: drops the thinking of the answer too
    "{% for m in messages %}<s>{{ m.role }}\n{{ m.content.split('</think>')[-1] }}</s>\n{% endfor %}"
    "{% if add_generation_prompt %}<s>assistant\n<think>\n{% endif %}"
)
SYSTEM_IN_LAST_TURN = (  # Mistral's: puts the system text in the last turn if that is the user's
    "<s>{% for m in messages %}{% if m.role == 'user' %}[INST] "
    "{% if loop.last and messages[0].role == 'system' %}{{ messages[0].content }}\n\n{% endif %}{{ m.content }}[/INST]"
    "{% elif m.role == 'assistant' %} {{ m.content }}</s>{% endif %}{% endfor %}"
)
DATED = "<s>Today is {{ strftime_now('%d %b %Y, %-d/%m') }}.</s>\n" + CHATML  # Llama 3's
GENERATION = (
    "{% for m in messages %}<s>{{ m.role }}\n{% if m.role == 'assistant' %}{% generation %}{{ m.content }}</s>"
    "{% endgeneration %}{% else %}{{ m.content }}</s>{% endif %}{{ '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}<s>assistant\n{% endif %}"
)
DOCUMENTS = "{% for d in documents or [] %}<s>{{ d.title }}: {{ d.text }}</s>\n{% endfor %}" + CHATML

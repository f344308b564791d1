"""Turns of conversations, as records of data files have them."""

SYSTEM, USER, ANSWER = ("system", "You are a nurse."), ("user", "What is a fever?"), ("assistant", "Above 38.")
TOOL = {"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}


def turns(*pairs, **more):
    return [{"role": role, "content": content} | more for role, content in pairs]

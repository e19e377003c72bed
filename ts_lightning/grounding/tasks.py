"""The names of tasks: what the base answers in words, and the first skill that it is taught."""

UNDERSTANDING, GROUNDING = "understanding", "grounding"

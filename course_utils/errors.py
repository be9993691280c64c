"""Errors for people: what was wrong, where, and what to do.

Every error of the course carries an id. TROUBLESHOOTING.md has a section for each id, and a test keeps the two in step.
"""

from __future__ import annotations


class CourseError(ValueError):
    """An error that says what was wrong, where, and what to do about it.

    `id` is the heading to look for in TROUBLESHOOTING.md.
    """

    def __init__(self, id: str, what: str, *, where: str = "", remedy: str = "") -> None:
        self.id = id
        self.what = what
        self.where = where
        self.remedy = remedy
        parts = [what]
        if where:
            parts.append(f"Where: {where}.")
        if remedy:
            parts.append(f"What to do: {remedy}")
        parts.append(f"[{id}: see TROUBLESHOOTING.md]")
        super().__init__("\n".join(parts))

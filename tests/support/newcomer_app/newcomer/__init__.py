"""An app written from the how-to guides alone."""

from newcomer import parts  # noqa: F401 - registers them, before either component is imported

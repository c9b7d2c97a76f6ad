"""A team's own templates: begun from files that work (``starting``), and released (``releasing``).

``skeletons`` fills in the files under ``skeleton/``; ``suggesting`` says how large the next release is, ``changelog``
reads and dates its notes, ``repository`` looks at the author's repository and writes the release into it.
"""

"""``scaffold template lint``: what is wrong with a template, before anybody makes a project from it.

``table`` lists the rules, ``engine`` runs them, and each family of rules has its own module:
``safety`` (T1), ``recording`` (T2), ``asking`` (T3), ``expressions`` (T4), ``workflows`` (T5), ``outcome`` (T6),
``repository`` (T7). What they look at is a ``template.Template``: read once, never changed. ``pages`` holds a page
for each rule.
"""

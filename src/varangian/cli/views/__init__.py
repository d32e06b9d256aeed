"""Views of a run: live tables, plain lines, JSON, pictures.

Views take records and results and change nothing. The commands import them; they import rich or matplotlib
when they are asked to draw.
"""

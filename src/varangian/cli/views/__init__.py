"""What is shown of a run: tables that fill, plain lines, JSON, pictures.

Views take records and results and change nothing. The commands import them; they import rich or matplotlib
when they are asked to draw.
"""

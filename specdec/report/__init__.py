"""Tables, plots and samples of one or several results folders: ``python -m specdec.report results/``.

The HTML page is one file without any request to elsewhere; the same tables come as Markdown, LaTeX and CSV.
"""

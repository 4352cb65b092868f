"""The report: the paper's figures and tables from the rows of a results folder.

Data flows one way through the package::

    selection   which rows of the folder count, and a note on every row left out
    averages    rows -> scores (one a fit and domain) -> means with their spread and N
    sections/   means -> figures, tables and named gaps, as the records of ``records``
    drawing     figures -> matplotlib; ``inline_svg`` makes them follow the page's colours
    render      records -> report.html, report.md, figures/
"""

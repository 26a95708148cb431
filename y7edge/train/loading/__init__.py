"""How pictures reach the loop: in which order, from which cache, through which processes.

:mod:`y7edge.train.loading.dataset` puts them together.
"""

"What the warm server imports before it forks: all that the processes of the tests import."
import warnings
with warnings.catch_warnings():
    warnings.simplefilter('ignore')
    import accelerate, execnb.shell, fastai.distributed, nbdev.showdoc, nbdev.test, pytest, hypothesis
    import self_supervised.cli, self_supervised.training.distributed

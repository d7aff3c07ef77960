"""The prose of results/README.md and of the blocks about the runs; the braces are filled in from the runs."""

INTRODUCTION = """\
# Which of the papers' claims hold on data that we can run

Environment, in the root of the repository:
`python3 -m venv .venv && source .venv/bin/activate && pip install -r requirements.txt`. Run the
commands there:

```
python results/reproduce.py --list              # every experiment: data, methods, seeds, minutes, what is done
python results/reproduce.py digits-parity       # runs what is missing of an experiment, then renders the pages
python results/reproduce.py --power cifar10-fine  # how many seeds each claim of a finished experiment would need
python results/reproduce.py --render            # writes this page and the tables of all others from the runs' JSON files
```

The finished runs are part of the repository. To repeat an experiment, first move `results/runs/NAME`
and, if it exists, `output/results/NAME` away.

[`claims.py`](claims.py) lists the claims and their tests, [`experiments.py`](experiments.py) the
experiments. [`index.html`](index.html), to be opened in a browser from a checkout, has a picture of
every interval, with filters by paper and by data set.

- **Measures.** [`viz/README.md`](../viz/README.md) describes them. d_within is its intra-class
  variation, R2 its inter-class separability, ± the standard deviation over seeds. "MSP of wrong" is
  the mean MSP of wrong predictions. "At equal MSP" compares right and wrong predictions within narrow
  bins of MSP / (1 − MSP); the mean over the bins is weighted by their samples. A logit z is near zero
  if |z| < 0.01. AURC and ECE use
  all test images. The temperature and the exponent p of logit normalisation are chosen on a fifth
  of the test images. Measures that depend on them use the other images (means over ten such
  splits). C7 compares two scores on the same images. Linear transfer uses at most 10,000 training
  images.
- **Matched strength.** LS and MaxSup are compared at the same strength: 0.1, or 0.2 in some
  experiments{at_02}. Only the section on the papers' recipes compares LS with MaxSup at different
  strengths.
- **Pairs.** Runs with the same seed share initial weights, data order and augmentation. A test is a
  two-sided paired t test on one difference per seed. The difference is between two methods, except
  in C7 (two scores of one model), C21a (one method, against zero) and C6b (a slope). The t test
  assumes normal differences, which so few seeds cannot check.
- **Scope.** The tests cover variation between seeds only, not the choice of the test images. In bank
  and shoppers the seed also splits the table, a fifth for training. The test rows of two seeds
  overlap: the intervals hold for other splits of the same table, and are too narrow for other customers.
- **Signs.** Each difference is taken such that a positive one agrees with the claim.
- **Verdicts.** A claim is supported or contradicted if its corrected p is below {level:g}. Holm's
  correction covers all tests in one table of an experiment, including those in which no seed shows a
  difference. The tests of rising strengths and those of the recipes have tables of their own. The
  95 % intervals are not corrected. A claim is tested only when all planned seeds of its methods are
  finished. A verdict says nothing about the size of a difference: read the interval. Undecided does
  not mean equal.
- **Mean as claimed** counts the experiments in which the mean difference has the sign that the claim
  states, whatever the verdict. It shows which undecided claims point one way. It is no test.
- **Added seeds.** An experiment with fewer than {many} seeds may get {many} if
  `reproduce.py --power` says that they would decide further claims. Such an experiment is tested
  twice, before and after; the later verdict counts. Its corrected p is therefore doubled, even if no
  seeds are added. Experiments with added seeds: {added}. Experiments in which {many} seeds, which have
  not been run, would decide a further claim with 80 % power if the true difference and its spread were
  those observed: {worthwhile}.
- **Detectable.** For an undecided claim, the table gives the smallest true difference that these
  seeds would have shown with 80 % power. This uses the strictest threshold of Holm's correction:
  {level:g} divided by the number of tests, and by two where p is doubled. At the later thresholds,
  smaller differences suffice. The spread over these seeds is taken as the true spread; with three
  seeds, that is a guess.
- **Sources.** A claim that is "commonly stated" comes from an overview of label smoothing, which says
  of most that they can hold, or hold in some settings. "Contradicted" means that the claim does not
  hold in this experiment. The MaxSup repository says "improved calibration" without saying compared
  with what: C23a and C23b are two readings. No document states a hypothesis of ours.
- **Choices.** The recipe of each run was fixed before that run, but the design was revised after
  earlier results had been seen, and nothing was preregistered. The arms at matched strength came after
  first runs on digits, Fashion-MNIST and CIFAR-10, which were then replaced. The rising strengths in
  bank and shoppers came after the constant ones. shoppers was first run with four fifths of the table
  for training. Claims, measures and the families of tests were revised as well. The corrected p
  does not cover these choices.
"""
# Under the counts of verdicts, on each page.
WEAK = """\
If all differences were zero, each table of an experiment would still have a chance of up to
{percent:g} % of holding a false verdict. On average, up to {expected:.1f} of the {experiments} tables at constant
strength would hold one, and up to {all_expected:.1f} of all {tables} tables. A verdict from a single
experiment is weak evidence.
Experiments on the same data share test images, and most also share the network and the seeds, so
they are not independent replications.
"""
SMALL = """\
Most networks here are small and were trained for minutes. Most networks trained with CE are nearly
calibrated, so a loss that lowers confidence raises their ECE (C9, C23). LS and MaxSup lower
confidence in general, so C25a is contradicted almost by construction. These claims make up
{of_confidence} of the {contradicted} contradicted tests. Undecided does not mean
equal. "Mean as claimed in" counts the experiments in which the mean difference has the sign that
the claim states, whatever the verdict; it is no test.
"""
CAUTION = """\
## How to read this

{weak}
distillation-cifar10 nearly repeats cifar10-fine: its networks without a teacher differ by one epoch.

MaxSup and LS differ only where the prediction is wrong. They are nearly the same loss at a
training accuracy close to 100 %{near}.

LS and MaxSup lower confidence in general, so C25a is contradicted almost by construction. MaxSup
lowers it more than LS: in {right_too} experiments it has the lower mean MSP of right predictions, too,
and in {right_more} of them the difference is larger there than among wrong ones. C25b is therefore
weak evidence. A lower MSP of wrong predictions does not by itself mean a better ranking; AURC
measures that.

A temperature above 1 says that a network is overconfident, one below 1 that it is underconfident.
With CE, the mean temperature is between 0.9 and 1.3 in {nearly_calibrated} experiments; label noise
lowers it. LS and MaxSup lower it, mostly far below 1, which raises ECE. Of the experiments that
test C9 and C23, only imdb has
strongly overconfident CE networks, and only there do both lower ECE. The CE network of
cifar10-resnet20-paper is overconfident, too, and there both raise ECE; with one seed, nothing is
tested. The verdicts say little about such networks. C24 compares ECE after temperature scaling.

In digits-parity the 397 test images hold 3 to 11 errors, so a fifth of them holds few or none.
Splits that hold out no error choose no temperature and are left out. In the others, the temperature
rests on a few errors: temperature, ECE after scaling and C24 mean little there.

digits-parity was trained again after verdicts had been seen: when a fault in the choice of its
temperatures was found, the checkpoints were gone. Another machine rounds differently, so the same
seeds gave other networks. The earlier training also contradicted C1, C12 and C25a (corrected p
0.036, 0.045 and 0.029). The present one leaves them undecided, with differences of the same sign.
The corrected p does not cover this second look.

Most networks here are small and were trained for minutes. These runs can neither refute nor confirm
the papers' ImageNet results.
"""
PLANNED = """\
## Planned, not run

These experiments need GPUs. `python results/reproduce.py NAME --data-path imagenet=FOLDER` runs the
command of one that has a name on all GPUs of a machine. To run a command yourself, set `DATA` to the
absolute path of that folder; those in `Conv/ffcv` need `bash Conv/ffcv/install.sh` first. GPU-hours are
the sum over all losses named, from published speeds: {images_per_second_source}.
The size of the .ffcv files is extrapolated: {storage_source}.

| name | experiment | command | images/s per GPU | GPU-hours | storage |
|---|---|---|---:|---:|---|
"""

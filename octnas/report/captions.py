"""What stands below the figures and tables of the page."""

FRONT_CAPTION = (
    "Each point is one architecture, scored with the supernet’s weights. The stepped line is the "
    "front: at these MACs, nothing scored was better. Rings mark what was chosen for the budgets "
    "(dashed). Supernet scores rank; they are not the accuracy of a network trained on its own. "
    "Clicking a point selects its network."
)
RETRAINED_CAPTION = (
    "Mean over seeds; bars are one standard deviation. MACs are not time: measure the latency "
    "before choosing. Clicking a point selects its network."
)
PICK_CAPTION = (
    "Of what the search found, the supernet’s score decides which network is looked at, so that "
    "the val images judge it and do not choose it. It is recommended if it is better than every "
    "other network within the limit, beyond the noise."
)
EFFECT_CAPTION = (
    "Cells: channels at half resolution. Sensitivity: by how much the supernet’s loss grows where "
    "the site goes from its smallest α to its largest, the others as they were in the search’s "
    "candidates, by the model of all scores (± its standard deviation). Above: MACs by stage."
)
NETWORKS_CAPTION = (
    "A name selects its network; a phone shows all of the selected ones. "
    "± is the standard deviation over seeds; that of a difference to uniform α is half of its "
    "interval, for all budgets at once with 95 %. Latency is of the network alone, with random "
    "weights. Classes: accuracy against vanilla, in points, without regard to noise, so that of "
    "many classes some lose by chance."
)
HYPERVOLUME_CAPTION = (
    "The area that the front dominates, up to the MACs of the largest budget and the loss of a "
    "guess among all classes. Where it has stopped growing, more trials would find little."
)
TRAINING_CAPTION = (
    "Mean over seeds. The supernet’s loss is over whatever subnets each step drew, so only its "
    "course compares with the others."
)
TIMES_CAPTION = (
    "Hours of all processes together, interruptions left out. On CPUs, times the threads they are "
    "CPU-hours; with a GPU for each process they are GPU-hours."
)

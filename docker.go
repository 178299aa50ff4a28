package main

// containerView is all that the docker arguments depend on: asked of a running daemon, or the command's own view.
type containerView struct {
	HTTP, Kube, Talos             bool // planes that are on
	HTTPPort, KubePort, TalosPort uint16
	DockerHost                    string
	NoProxy                       []string // in order, as printed
	Env                           []string // placeholders, "GH_TOKEN=ghp_muxproxy-placeholder…"
	MuxDir                        string
	SELinux                       bool
}

// dockerArgs gives the arguments, one a string: "-e", "HTTP_PROXY=…".
func dockerArgs(v containerView) []string { panic("stub") }

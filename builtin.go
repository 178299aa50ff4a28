package main

// npmHost is the public npm registry.
const npmHost = "registry.npmjs.org"

// placeholderMark is in every placeholder. An auth field that holds it, Basic decoded, came from us and never leaves.
const placeholderMark = "muxproxy-placeholder"

// builtinRules gives the rules that hold without a config file: one value a call, so that nobody changes another's.
// Each is passive until its service has a credential. Docker's registry itself has no rule here: its short-lived token
// comes from the token flow at auth.docker.io, and it is tunneled.
func builtinRules() []*rule {
	return []*rule{githubRule(), gitRule(), anthropicRule(), pagerdutyRule(), sentryRule(), npmRule(), dockerAuthRule()}
}

// bearer is a source for "Authorization: Bearer".
func bearer(file string, env ...string) source {
	return source{field: "Authorization", format: "Bearer {}", env: env, file: file}
}

// on443 gives exact host patterns for https.
func on443(hosts ...string) []hostPattern {
	patterns := make([]hostPattern, len(hosts))
	for i, host := range hosts {
		patterns[i] = hostPattern{host: host, port: 443}
	}
	return patterns
}

// githubPlaceholders is what both GitHub rules give: gh asks for GH_TOKEN before it asks anybody else, git needs none.
func githubPlaceholders() []placeholder {
	return []placeholder{{env: "GH_TOKEN", value: "ghp_" + placeholderMark}}
}

// githubRule is for the REST and GraphQL API. https://docs.github.com/en/rest/authentication
func githubRule() *rule {
	return &rule{
		service: "github", builtin: true,
		hosts:        on443("api.github.com", "uploads.github.com"),
		sources:      []source{bearer("github", "GITHUB_TOKEN", "GH_TOKEN")},
		placeholders: githubPlaceholders(),
	}
}

// gitRule is for git and LFS over HTTPS, whose endpoints take Basic alone; the web pages of github.com go without.
func gitRule() *rule {
	return &rule{
		service: "github", builtin: true,
		hosts: on443("github.com"),
		sources: []source{{
			field: "Authorization", username: "x-access-token",
			env: []string{"GITHUB_TOKEN", "GH_TOKEN"}, file: "github",
		}},
		paths:        []string{"/*/*/info/refs", "/*/*/git-upload-pack", "/*/*/git-receive-pack", "/*/*/info/lfs/*"},
		others:       actionForward,
		errorShape:   "git",
		placeholders: githubPlaceholders(),
	}
}

// anthropicRule takes an API key or, where there is none, a subscription's token, which the API takes only with its
// beta name. Claude Code looks at the prefixes of both placeholders. https://docs.anthropic.com/en/api/overview
func anthropicRule() *rule {
	subscription := bearer("anthropic-oauth", "CLAUDE_CODE_OAUTH_TOKEN")
	subscription.appendField, subscription.appendValue = "Anthropic-Beta", "oauth-2025-04-20"
	return &rule{
		service: "anthropic", builtin: true,
		hosts: on443("api.anthropic.com"),
		sources: []source{
			{field: "X-Api-Key", format: "{}", env: []string{"ANTHROPIC_API_KEY"}, file: "anthropic"},
			subscription,
		},
		errorShape: "anthropic",
		placeholders: []placeholder{
			{source: 0, env: "ANTHROPIC_API_KEY", value: "sk-ant-api03-" + placeholderMark},
			{source: 1, env: "CLAUDE_CODE_OAUTH_TOKEN", value: "sk-ant-oat01-" + placeholderMark},
		},
	}
}

// pagerdutyRule is for the REST API, which takes this form alone. https://developer.pagerduty.com/docs/authentication
func pagerdutyRule() *rule {
	return &rule{
		service: "pagerduty", builtin: true,
		hosts: on443("api.pagerduty.com", "api.eu.pagerduty.com"),
		sources: []source{{
			field: "Authorization", format: "Token token={}",
			env: []string{"PAGERDUTY_TOKEN"}, file: "pagerduty",
		}},
		placeholders: []placeholder{{env: "PAGERDUTY_TOKEN", value: placeholderMark}},
	}
}

// sentryRule is for the API; the ingest hosts take a key of their own and are tunneled. https://docs.sentry.io/api/auth/
func sentryRule() *rule {
	return &rule{
		service: "sentry", builtin: true,
		hosts:        on443("sentry.io", "us.sentry.io", "de.sentry.io"),
		sources:      []source{bearer("sentry", "SENTRY_AUTH_TOKEN")},
		placeholders: []placeholder{{env: "SENTRY_AUTH_TOKEN", value: placeholderMark}},
	}
}

// npmRule is for the public registry; npm, yarn berry and bun each read a variable of their own.
func npmRule() *rule {
	return &rule{
		service: "npm", builtin: true,
		hosts:   on443(npmHost),
		sources: []source{bearer("npm", "NPM_TOKEN")},
		placeholders: []placeholder{
			{env: "NPM_TOKEN", value: "npm_" + placeholderMark},
			{env: "YARN_NPM_AUTH_TOKEN", value: "npm_" + placeholderMark},
			{env: "NPM_CONFIG_TOKEN", value: "npm_" + placeholderMark},
		},
	}
}

// dockerAuthRule is for Docker Hub's token server. offline_token would ask it for a refresh token that never expires.
// https://docs.docker.com/reference/api/registry/auth/
func dockerAuthRule() *rule {
	return &rule{
		service: "docker-auth", builtin: true,
		hosts: on443("auth.docker.io"),
		sources: []source{{
			field: "Authorization", basicPair: true,
			env: []string{"DOCKER_USERNAME", "DOCKER_TOKEN"}, file: "docker",
		}},
		methods:    []string{"GET"},
		paths:      []string{"/token"},
		others:     actionForward,
		dropQuery:  "offline_token",
		errorShape: "registry",
	}
}
